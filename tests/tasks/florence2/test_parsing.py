import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.catalog import CatalogEntry
from tasks.florence2.parsing import parse_answer, read_banned_phrases
from tasks.parsing import AnsweredTask
from tasks.results import MaskFormat, TextResult
from tasks.table import TASKS, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import FLORENCE

IMAGE_WH = (1000, 500)
BOX = "<loc_10><loc_20><loc_30><loc_40>"
BOX_PX = (10.5, 10.25, 30.5, 20.25)
OTHER = "<loc_100><loc_200><loc_300><loc_400>"
OTHER_PX = (100.5, 100.25, 300.5, 200.25)
QUAD = "<loc_0><loc_0><loc_9><loc_0><loc_9><loc_9><loc_0><loc_9>"
QUAD_PX = ((0.5, 0.25), (9.5, 0.25), (9.5, 4.75), (0.5, 4.75))
TRIANGLE = "<loc_0><loc_0><loc_8><loc_0><loc_8><loc_4>"
TRIANGLE_PX = ((0.5, 0.25), (8.5, 0.25), (8.5, 2.25))
VOCABULARY = "open_vocabulary_detection"
SEGMENTATION = "instance_segmentation"


def parse(
    task_id: str,
    *texts: str,
    entry: CatalogEntry = FLORENCE,
    size_wh: tuple[int, int] = IMAGE_WH,
    mask_format: MaskFormat = "polygon",
    banned: frozenset[str] = frozenset(),
    logprob_of: Callable[[str], float] = lambda _: -0.5,
    **values: Any,
) -> Any:
    parameters = parse_parameters(TASKS[task_id], values)
    answers = [generated(text, logprob_of) for text in texts]
    task = AnsweredTask(entry, task_id, parameters, size_wh, mask_format, None, banned)
    return parse_answer(task, answers)


def boxes(result: Any) -> list[tuple[str, tuple[float, ...]]]:
    return [(detection.label, detection.box) for detection in result.detections]


def labels(result: Any) -> list[str]:
    return [item.label for item in result.items]


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
        (f"{BOX}car{OTHER}", [("car", OTHER_PX)], False),  # a box without a label is lost
        (f" {BOX}{OTHER}car{OTHER}", [("car", OTHER_PX)], False),
        ("<loc_1><loc_2><loc_3>car" + OTHER, [("car", OTHER_PX)], True),
        (f"grüner Käfer 🐞{BOX}", [("grüner Käfer 🐞", BOX_PX)], True),
        (f"a<b{BOX}", [("a<b", BOX_PX)], True),
        (f"two\nlines{BOX}", [("two\nlines", BOX_PX)], True),
        (f"car<loc_1000>{BOX}", [("car<loc_1000>", BOX_PX)], True),  # not a token
        (f"car<od>{BOX}</od>", [("car", BOX_PX)], True),
        ("car<loc_10><loc_20><sep><loc_30><loc_40>", [], False),
        (f"car<poly>{TRIANGLE}</poly>", [("car", (0.5, 0.25, 8.5, 2.25))], True),
        (f"dog{BOX}car<poly>{BOX}</poly>", [("dog", BOX_PX), ("car", BOX_PX)], True),
        (f"<poly>{TRIANGLE}</poly>car{BOX}", [("car", BOX_PX)], False),
    ],
)
def test_detections(
    text: str, expected: list[tuple[str, tuple[float, ...]]], is_parsed: bool
) -> None:
    for task_id in ("object_detection", "dense_region_captioning"):
        result = parse(task_id, text)
        assert (boxes(result), result.is_parsed) == (expected, is_parsed)


@pytest.mark.parametrize(
    ("texts", "expected", "is_parsed"),
    [
        ((f"dog{BOX}", f"Blue Cat{OTHER}"), [("dog", BOX_PX), ("blue cat", OTHER_PX)], True),
        ((f"puppy{BOX}", ""), [], True),  # another name than the requested one is not an answer
        ((f"blue cat{BOX}", ""), [], True),  # asked for a dog
        ((BOX, OTHER), [("dog", BOX_PX), ("blue cat", OTHER_PX)], True),
        ((f"dog{BOX}", "none"), [("dog", BOX_PX)], False),
        (("none", f"blue cat{OTHER}"), [("blue cat", OTHER_PX)], False),
    ],
)
def test_answers_to_each_name(texts: tuple[str, ...], expected: Any, is_parsed: bool) -> None:
    for task_id, name in ((VOCABULARY, "labels"), ("phrase_grounding", "phrases")):
        result = parse(task_id, *texts, **{name: ["dog", "blue cat"]})  # type: ignore[arg-type]
        assert (boxes(result), result.is_parsed) == (expected, is_parsed)


@pytest.mark.parametrize(
    ("values", "texts", "expected"),
    [
        ({"phrases": ["a Dog", "cat"]}, [f"dog{BOX}{OTHER}", f"the cat{BOX}"], "a Dog,a Dog,cat"),
        ({"phrases": ["a dog"]}, [BOX], "a dog"),
        ({"phrases": ["dog"]}, [f"a blue dog{BOX}"], ""),
        ({"caption": "A dog sits."}, [f"A dog{BOX}"], "A dog"),
        ({"caption": "A dog sits."}, [BOX], ""),
    ],
)
def test_grounded_phrases(values: dict[str, Any], texts: list[str], expected: str) -> None:
    assert ",".join(labels(parse("phrase_grounding", *texts, **values))) == expected


def test_labels_of_a_fine_tune() -> None:
    text = f"plate ABC1234{BOX}Plate{BOX}"
    for expected, is_forced in (["plate ABC1234", "the plate"], False), (["the plate"], True):
        entry = replace(FLORENCE, forced_names=is_forced)
        assert labels(parse(VOCABULARY, text, entry=entry, labels=["the plate"])) == expected


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        ("phrase_grounding", {"caption": "The image shows it."}, ["The image", "a dog"]),
        ("phrase_grounding", {"phrases": ["the image"]}, ["the image"]),  # the user's own phrase
        ("dense_region_captioning", {}, ["the image", "The image", "it", "a dog"]),
    ],
)
def test_banned_phrases(task_id: str, values: dict[str, Any], expected: list[str]) -> None:
    text = f"the image{BOX}The image{BOX} it {BOX}{OTHER}a dog{BOX}"
    banned = frozenset({"the image", "it"})
    result = parse(task_id, text, banned=banned, **values)
    assert list(dict.fromkeys(labels(result))) == expected
    alone = parse("phrase_grounding", f"it{BOX}", banned=banned, caption="It.")
    assert (alone.detections, alone.is_parsed) == ((), True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, set()),
        ({"post_processor_config": None}, set()),
        ({"post_processor_config": {"phrase_grounding": {}}}, set()),
        (
            {"post_processor_config": {"phrase_grounding": {"banned_grounding_tokens": ["a"] * 2}}},
            {"a"},
        ),
    ],
)
def test_banned_phrases_of_checkpoint(tmp_path: Path, config: Any, expected: set[str]) -> None:
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
    result = parse(SEGMENTATION, text, phrase="dog")
    assert [(i.label, list(i.polygons or ())) for i in result.instances] == expected
    assert result.is_parsed == is_parsed
    assert all(i.mask is None for i in result.instances)


def test_polygons_of_one_instance() -> None:
    text = f"{TRIANGLE}<sep>{QUAD}"
    (instance,) = parse(SEGMENTATION, text, region=[0, 0, 9, 9]).instances
    assert (instance.box, instance.label) == ((0.5, 0.25, 9.5, 4.75), "")
    (masked,) = parse(SEGMENTATION, text, mask_format="rle", phrase="dog").instances
    assert (masked.polygons, masked.mask.size_hw) == (None, (500, 1000))
    texts = (TRIANGLE, f"cat{TRIANGLE}<sep>{QUAD}")
    assert labels(parse(SEGMENTATION, *texts, phrases=["dog", "a cat"])) == ["dog", "a cat"]


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
        (f"{QUAD}STOP{QUAD}", [("STOP", QUAD_PX)], False),
    ],
)
def test_text_regions(text: str, expected: Any, is_parsed: bool) -> None:
    result = parse("ocr_with_regions", text)
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
def test_texts(text: str, of_image: str, of_region: str) -> None:
    assert parse("captioning", text) == TextResult(of_image, True)
    assert parse("ocr", text) == TextResult(of_image, True)
    assert parse("region_description", text, region=[0, 0, 9, 9]) == TextResult(of_region, True)


def test_text_of_tokens_is_not_parsed() -> None:
    assert parse("captioning", BOX) == TextResult("", False)
    assert parse("region_description", f"{BOX}circle", region=[0, 0, 9, 9]) == TextResult("", False)


ODDS = "<sep>|<poly>|</poly>|<od>|<loc_|<loc_1000>|<|>| |\n|car|ü"
PIECES = st.one_of(
    st.integers(0, 999).map(lambda n: f"<loc_{n}>"),
    st.sampled_from(ODDS.split("|")),
    st.text(max_size=5),
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))
CASES = [
    ("captioning", {}),
    ("object_detection", {}),
    (VOCABULARY, {"labels": ["car"]}),
    ("phrase_grounding", {"caption": "a car"}),
    ("region_proposal", {}),
    (SEGMENTATION, {"phrase": "car"}),
    ("ocr_with_regions", {}),
    ("region_description", {"region": [0, 0, 1, 1]}),
]


@pytest.mark.parametrize(("task_id", "values"), CASES)
@given(text=TEXTS, width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_any_text_is_read(
    task_id: str, values: dict[str, Any], text: str, width: int, height: int
) -> None:
    for item in parse(task_id, text, size_wh=(width, height), **values).items:
        assert 0 <= item.rank <= 1
        points: list[tuple[float, float]] = list(getattr(item, "quad", ()))
        if not points:
            x1, y1, x2, y2 = item.box
            assert x1 < x2
            assert y1 < y2
            points = [(x1, y1), (x2, y2)]
        for ring in getattr(item, "polygons", None) or ():
            points += ring
        for x, y in points:
            assert 0 <= x <= width
            assert 0 <= y <= height


LOGPROBS = {"red": -1.0, "car": -3.0, "dog": -5.0, "<sep>": -99.0}
LOGPROBS |= {f"<loc_{n}>": -0.01 * n for n in range(1000)}


@pytest.mark.parametrize(
    ("task_id", "values", "text", "expected"),
    [
        # of the label and the box's own locations
        ("object_detection", {}, f"red car{BOX}{OTHER}dog{BOX}", [-4.25, -6.5, -5.25]),
        ("region_proposal", {}, f"dog{BOX}", [-0.25]),
        # not of separators
        (SEGMENTATION, {"phrase": "dog"}, f"{TRIANGLE}<sep>{TRIANGLE}", [-0.4 / 12]),
        (SEGMENTATION, {"phrase": "dog"}, f"red car{TRIANGLE}<sep>{TRIANGLE}", [-4 - 0.4 / 12]),
    ],
)
def test_scores(task_id: str, values: dict[str, Any], text: str, expected: list[float]) -> None:
    result = parse(task_id, text, logprob_of=LOGPROBS.__getitem__, **values)
    logarithms = [math.log(item.rank) for item in result.items]
    assert logarithms == pytest.approx(expected)
