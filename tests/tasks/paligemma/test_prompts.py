import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UnsupportedTask
from tasks.paligemma.grammar import NUM_BINS, box_tokens, dequantize, quantize
from tasks.paligemma.prompts import read_prompt, task_prompts
from tasks.prompts import PromptSegment
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG

RELEASED = CATALOG["paligemma-3b-mix-224"]


def prompt(task_id: str, **values: Any) -> str:
    ((segment,),) = task_prompts(
        RELEASED, task_id, parse_parameters(TASKS[task_id], values), (640, 480)
    )
    assert segment == PromptSegment(segment.text, is_control=False)
    return segment.text


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        ("captioning", {}, "caption en"),
        ("captioning", {"detail": "detailed", "language": "de"}, "describe de"),
        ("open_vocabulary_detection", {"labels": ["dog"]}, "detect dog"),
        ("open_vocabulary_detection", {"labels": ["dog", "<loc0005>"]}, "detect dog ; <loc0005>"),
        ("phrase_grounding", {"phrases": ["a dog", "a cat"]}, "detect a dog ; a cat"),
        ("phrase_grounding", {"caption": "a sandy beach"}, "detect a sandy beach"),
        ("instance_segmentation", {"phrase": "a dog"}, "segment a dog"),
        ("ocr", {}, "ocr"),
        ("visual_question_answering", {"question": "why?"}, "answer en why?"),
        (
            "visual_question_answering",
            {"question": "ocr\nwhy?", "language": "fr"},
            "answer fr ocr why?",
        ),
    ],
)
def test_the_prompt_is_what_the_model_was_trained_on(
    task_id: str, values: dict[str, Any], expected: str
) -> None:
    assert prompt(task_id, **values) == expected


@pytest.mark.parametrize(
    ("task_id", "name"), [("open_vocabulary_detection", "labels"), ("phrase_grounding", "phrases")]
)
def test_an_entry_may_ask_for_each_name_by_its_own_prompt(task_id: str, name: str) -> None:
    parameters = parse_parameters(TASKS[task_id], {name: ["a dog", "cat"]})
    entry = replace(RELEASED, one_name_per_prompt=True)
    texts = [segment.text for (segment,) in task_prompts(entry, task_id, parameters, (640, 480))]
    assert texts == ["detect a dog", "detect cat"]


@pytest.mark.parametrize(
    ("task_id", "values", "param", "message"),
    [
        (
            "captioning",
            {"detail": "paragraph"},
            "detail",
            "supports detail short and detailed only, not paragraph",
        ),
        ("instance_segmentation", {"region": [0, 0, 9, 9]}, "region", "segments by phrase only"),
        (
            "phrase_grounding",
            {"caption": "a dog and a cat"},
            "caption",
            "a caption of one phrase only",
        ),
        (
            "phrase_grounding",
            {"caption": "a dog, a cat"},
            "caption",
            "a caption of one phrase only",
        ),
        (
            "phrase_grounding",
            {"caption": "a dog; a cat"},
            "caption",
            "a caption of one phrase only",
        ),
    ],
)
def test_a_variant_that_the_family_does_not_know_is_refused(
    task_id: str, values: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(UnsupportedTask, match=message) as caught:
        prompt(task_id, **values)
    assert caught.value.param == param


@pytest.mark.parametrize("task_id", ["object_detection", "region_proposal", "ocr_with_regions"])
def test_a_task_that_is_not_offered_is_refused(task_id: str) -> None:
    with pytest.raises(UnsupportedTask, match=f"paligemma-3b-mix-224 does not offer {task_id}"):
        prompt(task_id)


@pytest.mark.parametrize(
    ("text", "task_id", "values"),
    [
        ("caption en", "captioning", {"detail": "short", "language": "en"}),
        ("describe de", "captioning", {"detail": "detailed", "language": "de"}),
        ("ocr", "ocr", {}),
        ("detect cat", "open_vocabulary_detection", {"labels": ["cat"]}),
        ("detect a cat ; dog", "open_vocabulary_detection", {"labels": ["a cat", "dog"]}),
        ("segment the left cat", "instance_segmentation", {"phrase": "the left cat"}),
        ("segment cat ; a dog", "instance_segmentation", {"phrases": ["cat", "a dog"]}),
        (
            "answer en is it red?",
            "visual_question_answering",
            {"language": "en", "question": "is it red?"},
        ),
    ],
)
def test_a_prompt_is_its_task_and_the_task_writes_the_prompt(
    text: str, task_id: str, values: dict[str, Any]
) -> None:
    asked = read_prompt(RELEASED, f" {text}\n")
    assert asked is not None
    assert (asked.task_id, asked.values) == (task_id, values)
    ((segment,),) = task_prompts(
        RELEASED, task_id, parse_parameters(TASKS[task_id], values), (64, 48)
    )
    assert segment.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "what is it?",
        "caption",
        "caption this image",
        "detect",
        "ocr this",
        "answer en",
        "detective story",
    ],
)
def test_other_text_asks_for_no_task(text: str) -> None:
    assert read_prompt(RELEASED, text) is None


@pytest.mark.parametrize("word", ["", "caption", "detect", "answer"])
def test_reading_time_is_linear_in_runs_of_white_space(word: str) -> None:
    start_s = time.process_time()
    read_prompt(RELEASED, f"{word}{' ' * 100_000}x{' ' * 100_000}x")
    assert time.process_time() - start_s < 5  # a quadratic reader needs half a minute


@given(st.text(), st.sampled_from(["", "caption ", "detect ", "answer "]))
def test_any_text_is_read(text: str, word: str) -> None:
    read_prompt(RELEASED, word + text)


SIDES = st.integers(1, 20_000)


@given(st.integers(0, NUM_BINS - 1), SIDES)
def test_a_bin_survives_the_way_to_pixels_and_back(bin_index: int, side_px: int) -> None:
    assert quantize(dequantize(bin_index, side_px), side_px) == bin_index


@given(st.floats(0, 1), SIDES)
def test_a_position_comes_back_within_half_a_bin(part: float, side_px: int) -> None:
    position = part * side_px
    assert abs(
        dequantize(quantize(position, side_px), side_px) - position
    ) <= side_px / 1023 / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("position", "expected"), [(-5.0, 0), (0.0, 0), (640.0, 1023), (9e9, 1023)]
)
def test_positions_outside_are_clamped(position: float, expected: int) -> None:
    assert quantize(position, 640) == expected


def test_the_last_bin_is_the_border() -> None:
    assert dequantize(1023, 641) == 641.0


def test_a_box_is_written_y_before_x() -> None:
    assert (
        box_tokens((64.0, 0.0, 320.0, 480.0), (640, 480)) == "<loc0000><loc0102><loc1023><loc0512>"
    )
