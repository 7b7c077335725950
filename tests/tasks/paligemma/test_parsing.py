import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from tasks.catalog import TaskOverride
from tasks.paligemma.parsing import parse_answer
from tasks.results import DetectionsResult, InstancesResult, MaskFormat, TextResult
from tasks.table import TASKS, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import CATALOG, MASK_DECODER, PALIGEMMA

IMAGE_WH = (1023, 2046)  # a bin is one pixel wide and two high
BOX = "<loc0010><loc0020><loc0030><loc0040>"
BOX_PX = (20.0, 20.0, 40.0, 60.0)
OTHER = "<loc0000><loc0000><loc1023><loc1023>"
OTHER_PX = (0.0, 0.0, 1023.0, 2046.0)
RELEASED = CATALOG["paligemma-3b-mix-224"]
UNLABELLED = TaskOverride("{phrase}", labels=False)
CODES = "".join(f"<seg{code:03d}>" for code in range(16))


def parse(task_id: str, text: str, mask_format: MaskFormat = "polygon", **values: Any) -> Any:
    parameters = parse_parameters(TASKS[task_id], values)
    return parse_answer(
        RELEASED, task_id, parameters, [generated(text)], IMAGE_WH, mask_format, MASK_DECODER
    )


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", [], True),
        (" ", [], True),
        ("no location at all", [], False),
        (f"{BOX} car", [("car", BOX_PX)], True),
        (f"{BOX} car ; {OTHER} dog", [("car", BOX_PX), ("dog", OTHER_PX)], True),
        (f"{BOX} car;{BOX} car", [("car", BOX_PX), ("car", BOX_PX)], True),
        (f"{BOX} car {OTHER} dog", [("car", BOX_PX), ("dog", OTHER_PX)], True),
        (f"{BOX}{OTHER} car", [("car", BOX_PX), ("car", OTHER_PX)], True),  # two boxes, one label
        (f"{BOX} {CODES} car", [("car", BOX_PX)], True),
        ("<loc0010><loc0020><loc0030> car", [], False),
        (f"<loc0010><loc0020><loc0030> car ; {OTHER} dog", [("dog", OTHER_PX)], True),
        (f"{BOX} car ; <loc0010><loc0020>", [("car", BOX_PX)], True),  # cut by max_new_tokens
        (f"{BOX} car ; {OTHER}", [("car", BOX_PX), ("", OTHER_PX)], True),
        (f"{BOX} car ; <loc00", [("car", BOX_PX)], True),
        ("<loc0030><loc0040><loc0010><loc0020> car", [("car", BOX_PX)], True),  # odd order
        ("<loc0010><loc0020><loc0010><loc0040> car", [], False),  # no area
        (f"car {BOX}", [("", BOX_PX)], True),  # label first
        (f"{BOX} grüner Käfer 🐞", [("grüner Käfer 🐞", BOX_PX)], True),
        (f"{BOX} a<b", [("a<b", BOX_PX)], True),
        (f"{BOX} CAR", [("car", BOX_PX)], True),
        ("<loc1024><loc0020><loc0030><loc0040> car", [], False),  # not a token
        ("<loc_1><loc_2><loc_3><loc_4> car", [], False),
    ],
)
def test_detections(text: str, expected: Any, is_parsed: bool) -> None:
    result = parse("phrase_grounding", text, phrases=["car", "tree"])
    assert [(detection.label, detection.box) for detection in result.detections] == expected
    assert result.is_parsed == is_parsed
    asked_only = parse("open_vocabulary_detection", text, labels=["car", "tree"])
    assert [(each.label, each.box) for each in asked_only.detections] == [
        e for e in expected if e[0] in ("car", "tree")
    ]
    assert asked_only.is_parsed == is_parsed


@pytest.mark.parametrize(
    ("task_id", "name"), [("open_vocabulary_detection", "labels"), ("phrase_grounding", "phrases")]
)
def test_an_answer_of_several_gives_boxes_of_its_own_name_only(task_id: str, name: str) -> None:
    parameters = parse_parameters(TASKS[task_id], {name: ["car", "dog", "tree"]})
    answers = [generated(text) for text in (f"{BOX} car ; {BOX} dog", OTHER, "")]
    result: Any = parse_answer(
        PALIGEMMA, task_id, parameters, answers, IMAGE_WH, "polygon", MASK_DECODER
    )
    assert [(found.label, found.box) for found in result.detections] == [
        ("car", BOX_PX),
        ("dog", OTHER_PX),
    ]
    assert result.is_parsed


@pytest.mark.parametrize(
    ("task_id", "values"),
    [
        ("open_vocabulary_detection", {"labels": ["the car"]}),
        ("phrase_grounding", {"phrases": ["the car"]}),
        ("phrase_grounding", {"caption": "the car"}),
    ],
)
def test_a_box_without_label_gets_the_one_asked_label(task_id: str, values: dict[str, Any]) -> None:
    (detection,) = parse(task_id, BOX, **values).detections
    assert detection.label == "the car"


@pytest.mark.parametrize(
    ("text", "labels", "is_parsed"),
    [
        ("", [], True),
        ("none", [], False),
        (f"{BOX}{CODES} car", ["the car"], True),
        (f"{BOX}{CODES}", ["the car"], True),
        (f"{BOX} {CODES} car", ["the car"], True),
        (f"{BOX}{CODES} car ; {OTHER}{CODES} dog", ["the car", "dog"], True),
        (f"{BOX}{CODES}<seg001> car", ["the car"], True),
        (f"{BOX}{CODES[:-8]} car", [], False),  # 15 of 16
        (f"{BOX} car", [], False),
        (f"{BOX}{CODES} car ; {OTHER}<seg001>", ["the car"], True),  # cut by max_new_tokens
        (f"<loc0000>{BOX}{CODES} car", [], False),  # five locations
        (f"{BOX}{CODES.replace('seg015', 'seg128')} car", [], False),  # not a token
    ],
)
def test_instances(text: str, labels: list[str], is_parsed: bool) -> None:
    result: InstancesResult = parse("instance_segmentation", text, phrase="the car")
    assert [instance.label for instance in result.instances] == labels
    assert result.is_parsed == is_parsed


def test_each_instance_has_the_phrase_that_it_is_about() -> None:
    text = f"{BOX} {CODES} CAR ; {OTHER} {CODES} the tree ; {BOX}{CODES} car"
    together = parse("instance_segmentation", text, phrases=["a car", "tree"])
    labels = [instance.label for instance in together.instances]
    assert labels == ["a car", "tree", "a car"]
    parameters = parse_parameters(TASKS["instance_segmentation"], {"phrases": ["a car", "tree"]})
    answers = [generated(f"{BOX}{CODES}"), generated("nothing")]
    for entry in (PALIGEMMA, replace(RELEASED, tasks={"instance_segmentation": UNLABELLED})):
        apart = parse_answer(
            entry,
            "instance_segmentation",
            parameters,
            answers,
            IMAGE_WH,
            "polygon",
            MASK_DECODER,
        )
        assert isinstance(apart, InstancesResult)
        assert [instance.label for instance in apart.instances] == ["a car"]
        assert not apart.is_parsed


def test_labels_of_a_fine_tune_are_kept_as_written() -> None:
    entry = replace(RELEASED, forced_names=False)
    parameters = parse_parameters(TASKS["open_vocabulary_detection"], {"labels": ["the plate"]})
    for expected, read_by in (["plate ABC1234", "the plate"], entry), (["the plate"], RELEASED):
        text = f"{BOX} plate ABC1234 ; {OTHER} Plate"
        result = parse_answer(
            read_by,
            "open_vocabulary_detection",
            parameters,
            [generated(text)],
            IMAGE_WH,
            "polygon",
            None,
        )
        assert isinstance(result, DetectionsResult)
        assert [detection.label for detection in result.detections] == expected


def test_an_instance_has_polygons_in_its_box_or_a_mask_of_the_image() -> None:
    text = f"{BOX}{CODES} car"
    (with_polygons,) = parse("instance_segmentation", text, phrase="car").instances
    (with_mask,) = parse("instance_segmentation", text, "rle", phrase="car").instances
    assert with_polygons.box == with_mask.box == BOX_PX
    assert with_polygons.mask is None
    assert with_mask.polygons is None
    x, y = np.array([point for ring in with_polygons.polygons for point in ring]).T
    assert (x.min() >= 20, x.max() <= 40, y.min() >= 20, y.max() <= 60) == (True,) * 4
    mask = coco.decode(
        {"size": list(with_mask.mask.size_hw), "counts": with_mask.mask.counts.encode()}
    )
    assert mask.shape == (2046, 1023)
    assert mask.sum() == mask[20:60, 20:40].sum() > 0


def test_instances_cannot_be_read_without_a_mask_decoder() -> None:
    parameters = parse_parameters(TASKS["instance_segmentation"], {"phrase": "car"})
    with pytest.raises(ValueError, match="without a mask decoder"):
        parse_answer(
            PALIGEMMA,
            "instance_segmentation",
            parameters,
            [generated("")],
            IMAGE_WH,
            "polygon",
            None,
        )


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", "", True),
        (" two dogs. ", "two dogs.", True),
        (f"größer <3 {BOX}", "größer <3", True),
        (BOX, "", False),
    ],
)
def test_texts_come_without_control_tokens(text: str, expected: str, is_parsed: bool) -> None:
    result = TextResult(expected, is_parsed)
    assert parse("captioning", text) == parse("ocr", text) == result
    assert parse("visual_question_answering", text, question="why?") == result


LOGPROBS = {"red": -1.0, "car": -3.0, ";": -99.0, "": -99.0} | {
    f"<loc{n:04d}>": -0.01 * n for n in range(1024)
}
LOGPROBS |= {f"<seg{n:03d}>": -99.0 for n in range(128)}


def scores(task_id: str, text: str, **values: Any) -> list[float]:
    parameters = parse_parameters(TASKS[task_id], values)
    answer = generated(text, LOGPROBS.__getitem__)
    result: Any = parse_answer(
        RELEASED, task_id, parameters, [answer], IMAGE_WH, "polygon", MASK_DECODER
    )
    return [math.log(each.score) for each in getattr(result, TASKS[task_id].result_kind)]


def test_a_boxs_score_is_of_its_label_and_its_own_locations() -> None:
    label = -1 - 3
    first = -0.01 * 100 / 4
    second = -0.01 * 2046 / 4
    expected = [label + first, label + second, first]
    text = f"{BOX}{OTHER} red car ; {BOX}"
    assert scores("phrase_grounding", text, phrases=["red car", "dog"]) == pytest.approx(expected)


def test_segmentation_tokens_do_not_count_in_an_instances_score() -> None:
    assert scores("instance_segmentation", f"{BOX}{CODES} car", phrase="car") == pytest.approx(
        [-3 - 0.25]
    )


PIECES = st.one_of(
    st.integers(0, 1023).map(lambda n: f"<loc{n:04d}>"),
    st.integers(0, 127).map(lambda n: f"<seg{n:03d}>"),
    st.just(CODES),
    st.just(BOX),
    st.sampled_from([" ; ", ";", "<loc", "<loc1024>", "<seg128>", "<", " ", "\n", " car", "ü"]),
    st.text(max_size=5),
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))
CASES = [
    ("captioning", {}),
    ("open_vocabulary_detection", {"labels": ["car", "dog"]}),
    ("instance_segmentation", {"phrase": "car"}),
]


@pytest.mark.parametrize(("task_id", "values"), CASES)
@given(text=TEXTS, width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_any_text_is_read_and_all_points_lie_in_the_image(
    task_id: str, values: dict[str, Any], text: str, width: int, height: int
) -> None:
    parameters = parse_parameters(TASKS[task_id], values)
    result: Any = parse_answer(
        RELEASED, task_id, parameters, [generated(text)], (width, height), "polygon", MASK_DECODER
    )
    if isinstance(result, TextResult):
        return
    for each in getattr(result, TASKS[task_id].result_kind):
        x1, y1, x2, y2 = each.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert 0 <= each.score <= 1
        for x, y in (point for ring in getattr(each, "polygons", ()) for point in ring):
            assert x1 - 1e-6 <= x <= x2 + 1e-6
            assert y1 - 1e-6 <= y <= y2 + 1e-6
