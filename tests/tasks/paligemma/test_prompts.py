from dataclasses import replace
from typing import Any

import pytest

from tasks.errors import UnsupportedTask, UnsupportedVariant
from tasks.paligemma.prompts import task_prompts
from tasks.parameters import parse_parameters
from tasks.prompts import PromptSegment
from tasks.table import TASKS
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
    with pytest.raises(UnsupportedVariant, match=message) as caught:
        prompt(task_id, **values)
    assert caught.value.param == param


@pytest.mark.parametrize("task_id", ["object_detection", "region_proposal", "ocr_with_regions"])
def test_a_task_that_is_not_offered_is_refused(task_id: str) -> None:
    with pytest.raises(UnsupportedTask, match=f"paligemma-3b-mix-224 does not offer {task_id}"):
        prompt(task_id)
