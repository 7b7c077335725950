import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask
from tasks.paligemma.prompts import read_prompt, task_prompts
from tasks.prompts import PromptSegment
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG

RELEASED = CATALOG["paligemma-3b-mix-224"]
VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
SEGMENTATION = "instance_segmentation"
QUESTIONS = "visual_question_answering"


def prompts(task_id: str, entry: CatalogEntry = RELEASED, **values: Any) -> list[str]:
    parameters = parse_parameters(TASKS[task_id], values)
    texts: list[str] = []
    for (segment,) in task_prompts(entry, task_id, parameters, (640, 480)):
        assert segment == PromptSegment(segment.text, is_control=False)
        texts.append(segment.text)
    return texts


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        ("captioning", {}, "caption en"),
        (VOCABULARY, {"labels": ["dog", "<loc0005>"]}, "detect dog ; <loc0005>"),
        (GROUNDING, {"phrases": ["a dog", "a cat"]}, "detect a dog ; a cat"),
        (GROUNDING, {"caption": "a sandy beach"}, "detect a sandy beach"),
        (QUESTIONS, {"question": "why?"}, "answer en why?"),
        (QUESTIONS, {"question": "ocr\nwhy?", "language": "fr"}, "answer fr ocr why?"),
    ],
)
def test_prompt(task_id: str, values: dict[str, Any], expected: str) -> None:
    assert prompts(task_id, **values) == [expected]


@pytest.mark.parametrize(
    ("text", "task_id", "values"),
    [
        ("caption en", "captioning", {"detail": "short", "language": "en"}),
        ("describe de", "captioning", {"detail": "detailed", "language": "de"}),
        ("ocr", "ocr", {}),
        ("detect cat", VOCABULARY, {"labels": ["cat"]}),
        ("detect a cat ; dog", VOCABULARY, {"labels": ["a cat", "dog"]}),
        ("segment the left cat", SEGMENTATION, {"phrase": "the left cat"}),
        ("segment cat ; a dog", SEGMENTATION, {"phrases": ["cat", "a dog"]}),
        ("answer en is it red?", QUESTIONS, {"language": "en", "question": "is it red?"}),
    ],
)
def test_prompt_and_its_task(text: str, task_id: str, values: dict[str, Any]) -> None:
    asked_task = read_prompt(RELEASED, f" {text}\n")
    assert asked_task is not None
    assert (asked_task.task_id, asked_task.values) == (task_id, values)
    assert prompts(task_id, **values) == [text]


def test_prompt_for_each_name() -> None:
    entry = replace(RELEASED, one_name_per_prompt=True)
    expected = ["detect a dog", "detect cat"]
    assert prompts(VOCABULARY, entry, labels=["a dog", "cat"]) == expected
    assert prompts(GROUNDING, entry, phrases=["a dog", "cat"]) == expected


@pytest.mark.parametrize(
    ("task_id", "values", "param", "message"),
    [
        ("captioning", {"detail": "paragraph"}, "detail", "short and detailed only, not paragraph"),
        (SEGMENTATION, {"region": [0, 0, 9, 9]}, "region", "segments by phrase only"),
        (GROUNDING, {"caption": "a dog and a cat"}, "caption", "of one phrase only"),
        (GROUNDING, {"caption": "a dog, a cat"}, "caption", "of one phrase only"),
        (GROUNDING, {"caption": "a dog; a cat"}, "caption", "of one phrase only"),
        ("object_detection", {}, "task", "paligemma-3b-mix-224 does not offer object_detection"),
    ],
)
def test_unsupported_request_is_refused(
    task_id: str, values: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(UnsupportedTask, match=message) as caught:
        prompts(task_id, **values)
    assert caught.value.param == param


OTHER_TEXTS = "|what is it?|caption|caption this image|detect|ocr this|answer en|detective story"


@pytest.mark.parametrize("text", OTHER_TEXTS.split("|"))
def test_other_text_has_no_task(text: str) -> None:
    assert read_prompt(RELEASED, text) is None


@pytest.mark.parametrize("word", ["", "caption", "detect", "answer"])
def test_reading_time_is_linear(word: str) -> None:
    start_s = time.process_time()
    read_prompt(RELEASED, f"{word}{' ' * 100_000}x{' ' * 100_000}x")
    assert time.process_time() - start_s < 5  # a quadratic reader needs half a minute


@given(st.text(), st.sampled_from(["", "caption ", "detect ", "answer "]))
def test_any_text_is_read(text: str, word: str) -> None:
    read_prompt(RELEASED, word + text)
