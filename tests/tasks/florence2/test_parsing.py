import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.florence2.parsing import parse_answer, read_banned_phrases
from tasks.parameters import parse_parameters
from tasks.results import (
    DetectionsResult,
    InstancesResult,
    MaskFormat,
    TextRegionsResult,
    TextResult,
)
from tasks.table import TASKS
from tests.support.answers import generated
from tests.support.catalog import FLORENCE

IMAGE_WH = (1000, 500)
BOX = "<loc_10><loc_20><loc_30><loc_40>"
BOX_PX = (10.5, 10.25, 30.5, 20.25)
OTHER = "<loc_100><loc_200><loc_300><loc_400>"
OTHER_PX = (100.5, 100.25, 300.5, 200.25)
QUAD = "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9><loc_0><loc_9>"
QUAD_PX = ((0.5, 0.25), (9.5, 0.25), (9.5, 4.75), (0.5, 4.75))
BANNED = frozenset({"the image", "it"})
TRIANGLE = "<loc_0><loc_0><loc_8><loc_0><loc_8><loc_4>"
TRIANGLE_PX = ((0.5, 0.25), (8.5, 0.25), (8.5, 2.25))


def parse(task_id: str, *texts: str, mask_format: MaskFormat = "polygon", **values: Any) -> Any:
    parameters = parse_parameters(TASKS[task_id], values)
    return parse_answer(
        FLORENCE,
        task_id,
        parameters,
        [generated(text) for text in texts],
        IMAGE_WH,
        mask_format,
        None,
    )


def boxes(result: DetectionsResult) -> list[tuple[str, tuple[float, ...]]]:
    return [(detection.label, detection.box) for detection in result.detections]


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", [], True),
        (" \n", [], True),
        ("no location at all", [], False),
        (f"car{BOX}", [("car", BOX_PX)], True),
        (f" car {BOX} and more", [("car", BOX_PX)], True),
        (f"car{BOX}dog{OTHER}", [("car", BOX_PX), ("dog", OTHER_PX)], True),
        (f"car{BOX}{OTHER}", [("car", BOX_PX), ("car", OTHER_PX)], True),
        (f"car{BOX} {OTHER}", [("car", BOX_PX), ("car", OTHER_PX)], True),
        ("car<loc_10><loc_20><loc_30>", [], False),
        (f"car<loc_10><loc_20><loc_30>dog{OTHER}", [("dog", OTHER_PX)], True),
        (f"car{BOX}<loc_1><loc_2>", [("car", BOX_PX)], True),  # cut by max_new_tokens
        (f"car{BOX}do", [("car", BOX_PX)], True),
        ("car<loc_10><loc_20><loc_30><lo", [], False),
        ("car<loc_30><loc_40><loc_10><loc_20>", [("car", BOX_PX)], True),  # odd order
        ("car<loc_10><loc_20><loc_10><loc_40>", [], False),  # no area
        (f"{BOX}car", [], False),  # no label
        (f"{BOX}car{OTHER}", [("car", OTHER_PX)], True),
        (f"grüner Käfer 🐞{BOX}", [("grüner Käfer 🐞", BOX_PX)], True),
        (f"a<b{BOX}", [("a<b", BOX_PX)], True),
        (f"two\nlines{BOX}", [("two\nlines", BOX_PX)], True),
        (f"car<loc_1000>{BOX}", [("car<loc_1000>", BOX_PX)], True),  # not a token
        (f"car<od>{BOX}</od>", [("car", BOX_PX)], True),
        ("car<loc_10><loc_20><sep><loc_30><loc_40>", [], False),
        (f"car<poly>{TRIANGLE}</poly>", [("car", (0.5, 0.25, 8.5, 2.25))], True),
    ],
)
def test_detections(
    text: str, expected: list[tuple[str, tuple[float, ...]]], is_parsed: bool
) -> None:
    for task_id in ("object_detection", "dense_region_captioning"):
        result = parse(task_id, text)
        assert (boxes(result), result.is_parsed) == (expected, is_parsed)


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", [], True),
        (BOX, [("", BOX_PX)], True),
        (f"{BOX}{OTHER}", [("", BOX_PX), ("", OTHER_PX)], True),
        (f"thing{BOX}", [("", BOX_PX)], True),
        ("<loc_1><loc_2><loc_3>", [], False),
    ],
)
def test_region_proposals_have_no_label(text: str, expected: Any, is_parsed: bool) -> None:
    result = parse("region_proposal", text)
    assert (boxes(result), result.is_parsed) == (expected, is_parsed)


@pytest.mark.parametrize(
    ("texts", "expected", "is_parsed"),
    [
        ((f"dog{BOX}", f"Blue Cat{OTHER}"), [("dog", BOX_PX), ("blue cat", OTHER_PX)], True),
        ((f"puppy{BOX}", ""), [], True),  # another name than the requested one is not an answer
        ((f"blue cat{BOX}", ""), [], True),  # asked for a dog
        ((BOX, OTHER), [("dog", BOX_PX), ("blue cat", OTHER_PX)], True),
        (("", ""), [], True),
        ((f"dog{BOX}", "none"), [("dog", BOX_PX)], False),
    ],
)
def test_each_answer_is_read_for_its_own_label(
    texts: tuple[str, ...], expected: Any, is_parsed: bool
) -> None:
    for task_id, name in (("open_vocabulary_detection", "labels"), ("phrase_grounding", "phrases")):
        values: dict[str, Any] = {name: ["dog", "blue cat"]}
        result = parse(task_id, *texts, **values)
        assert (boxes(result), result.is_parsed) == (expected, is_parsed)


@pytest.mark.parametrize(
    ("values", "texts", "expected"),
    [
        (
            {"phrases": ["a Dog", "cat"]},
            [f"dog{BOX}{OTHER}", f"the cat{BOX}"],
            ["a Dog", "a Dog", "cat"],
        ),
        ({"phrases": ["a dog"]}, [BOX], ["a dog"]),
        ({"phrases": ["dog"]}, [f"a blue dog{BOX}"], []),
        ({"caption": "A dog sits."}, [f"A dog{BOX}"], ["A dog"]),
        ({"caption": "A dog sits."}, [BOX], []),
    ],
)
def test_grounded_boxes_carry_their_phrase(
    values: dict[str, Any], texts: list[str], expected: list[str]
) -> None:
    result = parse("phrase_grounding", *texts, **values)
    assert [detection.label for detection in result.detections] == expected


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        ("phrase_grounding", {"caption": "The image shows it."}, ["The image", "a dog"]),
        ("phrase_grounding", {"phrases": ["the image"]}, ["the image"]),  # the user's own phrase
        ("dense_region_captioning", {}, ["the image", "The image", "it", "a dog"]),
    ],
)
def test_banned_phrases_of_a_caption_have_no_boxes(
    task_id: str, values: dict[str, Any], expected: list[str]
) -> None:
    answer = generated(f"the image{BOX}The image{BOX} it {BOX}{OTHER}a dog{BOX}")
    parameters = parse_parameters(TASKS[task_id], values)
    result: Any = parse_answer(
        FLORENCE, task_id, parameters, [answer], IMAGE_WH, "polygon", None, BANNED
    )
    assert list(dict.fromkeys(detection.label for detection in result.detections)) == expected


def test_an_answer_of_banned_phrases_alone_is_parsed() -> None:
    parameters = parse_parameters(TASKS["phrase_grounding"], {"caption": "It."})
    result = parse_answer(
        FLORENCE,
        "phrase_grounding",
        parameters,
        [generated(f"it{BOX}")],
        IMAGE_WH,
        "polygon",
        None,
        BANNED,
    )
    assert result == DetectionsResult((), is_parsed=True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, set()),
        ({}, set()),
        ({"post_processor_config": None}, set()),
        ({"post_processor_config": {"phrase_grounding": {}}}, set()),
        (
            {
                "post_processor_config": {
                    "phrase_grounding": {"banned_grounding_tokens": ["it", "a", "it"]}
                }
            },
            {"it", "a"},
        ),
    ],
)
def test_banned_phrases_are_the_checkpoints_own(
    tmp_path: Path, config: Any, expected: set[str]
) -> None:
    file = tmp_path / "processor_config.json"
    if config is not None:
        file.write_text(json.dumps(config))
    assert read_banned_phrases(file) == expected


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", [], True),
        ("none", [], False),
        (TRIANGLE, [("dog", [TRIANGLE_PX])], True),
        (f"{TRIANGLE}<loc_5>", [("dog", [TRIANGLE_PX])], True),  # half a point
        (f"puppy{TRIANGLE}", [("puppy", [TRIANGLE_PX])], True),
        (f"{TRIANGLE}<sep>{TRIANGLE}", [("dog", [TRIANGLE_PX, TRIANGLE_PX])], True),
        # less than three points
        (f"{TRIANGLE}<sep><loc_1><loc_2>", [("dog", [TRIANGLE_PX])], True),
        (
            f"<poly>{TRIANGLE}</poly><poly>{TRIANGLE}</poly>",
            [("dog", [TRIANGLE_PX]), ("dog", [TRIANGLE_PX])],
            True,
        ),
        (f"<poly>{TRIANGLE}<sep>{TRIANGLE}</poly>", [("dog", [TRIANGLE_PX, TRIANGLE_PX])], True),
        (f"<poly>{TRIANGLE}", [("dog", [TRIANGLE_PX])], True),
        ("<loc_1><loc_2><loc_3><loc_4>", [], False),
        ("<loc_1><loc_2><loc_1><loc_4><loc_1><loc_8>", [], False),  # no area
    ],
)
def test_instances(text: str, expected: Any, is_parsed: bool) -> None:
    result: InstancesResult = parse("instance_segmentation", text, phrase="dog")
    assert [(i.label, list(i.polygons or ())) for i in result.instances] == expected
    assert result.is_parsed == is_parsed
    assert all(i.mask is None for i in result.instances)


def test_each_instance_has_the_phrase_that_it_was_asked_for() -> None:
    parameters = parse_parameters(TASKS["instance_segmentation"], {"phrases": ["dog", "a cat"]})
    answers = [generated(TRIANGLE), generated(f"cat{TRIANGLE}<sep>{QUAD}")]
    result = parse_answer(
        FLORENCE, "instance_segmentation", parameters, answers, IMAGE_WH, "polygon", None
    )
    assert isinstance(result, InstancesResult)
    assert [instance.label for instance in result.instances] == ["dog", "a cat"]
    assert result.is_parsed


def test_labels_of_a_fine_tune_are_kept_as_written() -> None:
    parameters = parse_parameters(TASKS["open_vocabulary_detection"], {"labels": ["the plate"]})
    answer = generated(f"plate ABC1234{BOX}Plate{BOX}")
    for expected, is_forced in (["plate ABC1234", "the plate"], False), (["the plate"], True):
        entry = replace(FLORENCE, forced_names=is_forced)
        result = parse_answer(
            entry, "open_vocabulary_detection", parameters, [answer], IMAGE_WH, "polygon", None
        )
        assert isinstance(result, DetectionsResult)
        assert [detection.label for detection in result.detections] == expected


def test_an_instances_box_bounds_all_its_polygons() -> None:
    (instance,) = parse(
        "instance_segmentation", f"{TRIANGLE}<sep>{QUAD}", region=[0, 0, 9, 9]
    ).instances
    assert instance.box == (0.5, 0.25, 9.5, 4.75)
    assert instance.label == ""


def test_polygons_become_one_mask_on_demand() -> None:
    (instance,) = parse(
        "instance_segmentation", f"{TRIANGLE}<sep>{QUAD}", mask_format="rle", phrase="dog"
    ).instances
    assert instance.polygons is None
    assert instance.mask.size_hw == (500, 1000)


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", [], True),
        ("STOP", [], False),
        (f"STOP{QUAD}", [("STOP", QUAD_PX)], True),
        (f"STOP{QUAD} GO {QUAD}", [("STOP", QUAD_PX), ("GO", QUAD_PX)], True),
        (f"STOP{QUAD[:-7]}", [], False),
        (f"STOP{QUAD}<loc_1>", [("STOP", QUAD_PX)], True),
        (f"стоп{QUAD}", [("стоп", QUAD_PX)], True),
        (QUAD, [], False),
    ],
)
def test_text_regions(text: str, expected: Any, is_parsed: bool) -> None:
    result: TextRegionsResult = parse("ocr_with_regions", text)
    assert [(region.text, region.quad) for region in result.text_regions] == expected
    assert result.is_parsed == is_parsed


@pytest.mark.parametrize(
    ("text", "of_image", "of_region"),
    [
        ("", "", ""),
        (" a red circle. ", "a red circle.", "a red circle."),
        (f"circle{BOX}", "circle", "circle"),
        (f"circle{BOX}square{BOX}", "circlesquare", "circle"),
        ("größer <3", "größer <3", "größer <3"),
    ],
)
def test_texts_come_without_control_tokens(text: str, of_image: str, of_region: str) -> None:
    assert parse("captioning", text) == TextResult(of_image, True)
    assert parse("ocr", text) == TextResult(of_image, True)
    assert parse("region_description", text, region=[0, 0, 9, 9]) == TextResult(of_region, True)


def test_a_text_of_tokens_only_is_not_parsed() -> None:
    assert parse("captioning", BOX) == TextResult("", False)
    assert parse("region_description", f"{BOX}circle", region=[0, 0, 9, 9]) == TextResult("", False)


PIECES = st.one_of(
    st.integers(0, 999).map(lambda n: f"<loc_{n}>"),
    st.sampled_from(
        [
            "<sep>",
            "<poly>",
            "</poly>",
            "<od>",
            "<loc_",
            "<loc_1000>",
            "<",
            ">",
            " ",
            "\n",
            "car",
            "ü",
        ]
    ),
    st.text(max_size=5),
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))
CASES = [
    ("captioning", {}),
    ("object_detection", {}),
    ("open_vocabulary_detection", {"labels": ["car"]}),
    ("phrase_grounding", {"caption": "a car"}),
    ("region_proposal", {}),
    ("instance_segmentation", {"phrase": "car"}),
    ("ocr_with_regions", {}),
    ("region_description", {"region": [0, 0, 1, 1]}),
]


@pytest.mark.parametrize(("task_id", "values"), CASES)
@given(text=TEXTS, width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_any_text_is_read_and_all_points_lie_in_the_image(
    task_id: str, values: dict[str, Any], text: str, width: int, height: int
) -> None:
    parameters = parse_parameters(TASKS[task_id], values)
    result: Any = parse_answer(
        FLORENCE, task_id, parameters, [generated(text)], (width, height), "polygon", None
    )
    if isinstance(result, TextResult):
        return
    for each in getattr(result, TASKS[task_id].result_kind):
        assert 0 <= each.score <= 1
        for x, y in _points(each):
            assert 0 <= x <= width
            assert 0 <= y <= height


def _points(each: Any) -> list[tuple[float, float]]:
    if hasattr(each, "quad"):
        return list(each.quad)
    x1, y1, x2, y2 = each.box
    assert x1 < x2
    assert y1 < y2
    return [
        (x1, y1),
        (x2, y2),
        *(point for ring in getattr(each, "polygons", None) or () for point in ring),
    ]


LOGPROBS = {"red": -1.0, "car": -3.0, "dog": -5.0, "<sep>": -99.0} | {
    f"<loc_{n}>": -0.01 * n for n in range(1000)
}


def scores(task_id: str, text: str, **values: Any) -> list[float]:
    answer = generated(text, LOGPROBS.__getitem__)
    result: Any = parse_answer(
        FLORENCE,
        task_id,
        parse_parameters(TASKS[task_id], values),
        [answer],
        IMAGE_WH,
        "polygon",
        None,
    )
    found = getattr(result, TASKS[task_id].result_kind)
    return [math.log(each.score) for each in found]


def test_a_boxs_score_is_of_its_label_and_its_own_locations() -> None:
    label = -1 - 3
    first = -0.01 * 100 / 4
    second = -0.01 * 1000 / 4
    dog = -5
    expected = [label + first, label + second, dog + first]
    assert scores("object_detection", f"red car{BOX}{OTHER}dog{BOX}") == pytest.approx(expected)


def test_a_proposals_score_is_of_its_locations() -> None:
    assert scores("region_proposal", f"dog{BOX}") == pytest.approx([-0.01 * 100 / 4])


@pytest.mark.parametrize(("label", "logprob"), [("", 0), ("red car", -1 - 3)])
def test_an_instances_score_is_of_its_label_and_locations_not_of_separators(
    label: str, logprob: float
) -> None:
    expected = [logprob - 0.01 * (20 + 20) / 12]
    text = f"{label}{TRIANGLE}<sep>{TRIANGLE}"
    assert scores("instance_segmentation", text, phrase="dog") == pytest.approx(expected)
