import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.paligemma.prompts import read_prompt, task_prompts
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.catalog import CATALOG

RELEASED = CATALOG["paligemma-3b-mix-224"]


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
