import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.catalog import CatalogEntry, TaskOverride
from tasks.paligemma import MaskDecoder
from tasks.paligemma.parsing import parse_answer
from tasks.parsing import AnsweredTask
from tasks.results import MaskFormat, TextResult
from tasks.run_length import decode_mask
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
VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
SEGMENTATION = "instance_segmentation"


def parse(
    task_id: str,
    *texts: str,
    entry: CatalogEntry = RELEASED,
    size_wh: tuple[int, int] = IMAGE_WH,
    mask_format: MaskFormat = "polygon",
    mask_decoder: MaskDecoder | None = MASK_DECODER,
    logprob_of: Callable[[str], float] = lambda _: -0.5,
    **values: Any,
) -> Any:
    parameters = parse_parameters(TASKS[task_id], values)
    answers = [generated(text, logprob_of) for text in texts]
    task = AnsweredTask(entry, task_id, parameters, size_wh, mask_format, mask_decoder)
    return parse_answer(task, answers)


def boxes(result: Any) -> list[tuple[str, tuple[float, ...]]]:
    return [(detection.label, detection.box) for detection in result.detections]


def labels(result: Any) -> list[str]:
    return [item.label for item in result.items]


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
    result = parse(GROUNDING, text, phrases=["car", "tree"])
    assert (boxes(result), result.is_parsed) == (expected, is_parsed)
    strict = parse(VOCABULARY, text, labels=["car", "tree"])
    assert boxes(strict) == [box for box in expected if box[0] in ("car", "tree")]
    assert strict.is_parsed == is_parsed


@pytest.mark.parametrize(("task_id", "name"), [(VOCABULARY, "labels"), (GROUNDING, "phrases")])
def test_answers_to_each_name(task_id: str, name: str) -> None:
    values: dict[str, Any] = {name: ["car", "dog", "tree"]}
    result = parse(task_id, f"{BOX} car ; {BOX} dog", OTHER, "", entry=PALIGEMMA, **values)
    assert boxes(result) == [("car", BOX_PX), ("dog", OTHER_PX)]
    assert result.is_parsed


@pytest.mark.parametrize(
    ("task_id", "values"),
    [
        (VOCABULARY, {"labels": ["the car"]}),
        (GROUNDING, {"phrases": ["the car"]}),
        (GROUNDING, {"caption": "the car"}),
    ],
)
def test_box_without_label(task_id: str, values: dict[str, Any]) -> None:
    assert labels(parse(task_id, BOX, **values)) == ["the car"]


def test_labels_of_a_fine_tune() -> None:
    text = f"{BOX} plate ABC1234 ; {OTHER} Plate"
    for expected, is_forced in (["plate ABC1234", "the plate"], False), (["the plate"], True):
        entry = replace(RELEASED, forced_names=is_forced)
        assert labels(parse(VOCABULARY, text, entry=entry, labels=["the plate"])) == expected


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
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
def test_instances(text: str, expected: list[str], is_parsed: bool) -> None:
    result = parse(SEGMENTATION, text, phrase="the car")
    assert (labels(result), result.is_parsed) == (expected, is_parsed)


def test_instances_of_several_phrases() -> None:
    text = f"{BOX} {CODES} CAR ; {OTHER} {CODES} the tree ; {BOX}{CODES} car"
    phrases = ["a car", "tree"]
    assert labels(parse(SEGMENTATION, text, phrases=phrases)) == ["a car", "tree", "a car"]
    for entry in (PALIGEMMA, replace(RELEASED, tasks={SEGMENTATION: UNLABELLED})):
        apart = parse(SEGMENTATION, f"{BOX}{CODES}", "nothing", entry=entry, phrases=phrases)
        assert (labels(apart), apart.is_parsed) == (["a car"], False)


def test_shapes_of_an_instance() -> None:
    text = f"{BOX}{CODES} car"
    (outlined,) = parse(SEGMENTATION, text, phrase="car").instances
    (masked,) = parse(SEGMENTATION, text, mask_format="rle", phrase="car").instances
    assert outlined.box == masked.box == BOX_PX
    assert (outlined.mask, masked.polygons) == (None, None)
    x, y = np.concatenate(outlined.polygons).T
    assert (x.min() >= 20, x.max() <= 40, y.min() >= 20, y.max() <= 60) == (True,) * 4
    mask = decode_mask(masked.mask)
    assert mask.shape == (2046, 1023)
    assert mask.sum() == mask[20:60, 20:40].sum() > 0
    with pytest.raises(ValueError, match="without a mask decoder"):
        parse(SEGMENTATION, "", mask_decoder=None, phrase="car")


@pytest.mark.parametrize(
    ("text", "expected", "is_parsed"),
    [
        ("", "", True),
        (" two dogs. ", "two dogs.", True),
        (f"größer <3 {BOX}", "größer <3", True),
        (BOX, "", False),
    ],
)
def test_texts(text: str, expected: str, is_parsed: bool) -> None:
    result = TextResult(expected, is_parsed)
    assert parse("captioning", text) == parse("ocr", text) == result
    assert parse("visual_question_answering", text, question="why?") == result


LOGPROBS = {"red": -1.0, "car": -3.0, ";": -99.0, "": -99.0}
LOGPROBS |= {f"<loc{n:04d}>": -0.01 * n for n in range(1024)}
LOGPROBS |= {f"<seg{n:03d}>": -99.0 for n in range(128)}


@pytest.mark.parametrize(
    ("task_id", "values", "text", "expected"),
    [
        # of the label and the box's own locations
        (
            GROUNDING,
            {"phrases": ["red car", "dog"]},
            f"{BOX}{OTHER} red car ; {BOX}",
            [-4.25, -4 - 20.46 / 4, -0.25],
        ),
        # not of segmentation tokens
        (SEGMENTATION, {"phrase": "car"}, f"{BOX}{CODES} car", [-3.25]),
    ],
)
def test_scores(task_id: str, values: dict[str, Any], text: str, expected: list[float]) -> None:
    result = parse(task_id, text, logprob_of=LOGPROBS.__getitem__, **values)
    logarithms = [math.log(item.rank) for item in result.items]
    assert logarithms == pytest.approx(expected)


PIECES = st.one_of(
    st.integers(0, 1023).map(lambda n: f"<loc{n:04d}>"),
    st.integers(0, 127).map(lambda n: f"<seg{n:03d}>"),
    st.just(CODES),
    st.just(BOX),
    st.sampled_from([" ; ", ";", "<loc", "<loc1024>", "<seg128>", "<", " ", "\n", " car", "ü"]),
    st.text(max_size=5),
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))


@pytest.mark.parametrize(
    ("task_id", "values"),
    [
        ("captioning", {}),
        (VOCABULARY, {"labels": ["car", "dog"]}),
        (SEGMENTATION, {"phrase": "car"}),
    ],
)
@given(text=TEXTS, width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_any_text_is_read(
    task_id: str, values: dict[str, Any], text: str, width: int, height: int
) -> None:
    result = parse(task_id, text, size_wh=(width, height), **values)
    objects: tuple[Any, ...] = result.items
    for item in objects:
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert 0 <= item.rank <= 1
        for ring in getattr(item, "polygons", ()):
            for x, y in ring:
                assert x1 - 1e-6 <= x <= x2 + 1e-6
                assert y1 - 1e-6 <= y <= y2 + 1e-6
