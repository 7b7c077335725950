from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from tasks.errors import ParameterError
from tasks.table import LANGUAGES, TASKS, parse_parameters

IDS = [
    "captioning",
    "object_detection",
    "open_vocabulary_detection",
    "phrase_grounding",
    "region_proposal",
    "dense_region_captioning",
    "instance_segmentation",
    "ocr",
    "ocr_with_regions",
    "region_description",
    "visual_question_answering",
]
VALUES: list[dict[str, Any]] = [
    {},
    {"detail": "short"},
    {"detail": "text", "region": [0, 0, 1, 1]},
    {"language": "de", "detail": "detailed"},
    {"language": "klingon"},
    {"labels": ["a"]},
    {"labels": []},
    {"labels": ["a;b"]},
    {"labels": ["x" * 201]},
    {"labels": ["a", "a"]},
    {"labels": [str(n) for n in range(33)]},
    {"caption": "a cat"},
    {"caption": "a cat", "phrases": ["a cat"]},
    {"phrases": ["a cat"]},
    {"phrase": "a cat"},
    {"phrase": ""},
    {"phrase": "a", "region": [0, 0, 1, 1]},
    {"region": [0, 0, 1, 1]},
    {"region": [0, 0, 1]},
    {"region": [-1, 0, 1, 1]},
    {"question": "why?"},
    {"question": "why?", "language": "zh"},
    {"question": "x" * 1001},
    {"unknown": 1},
]


def test_the_table_has_the_eleven_tasks_in_order() -> None:
    assert list(TASKS) == IDS


@pytest.mark.parametrize(
    ("task_id", "required"),
    [
        ("captioning", ()),
        ("open_vocabulary_detection", ("labels",)),
        ("phrase_grounding", ()),  # one of two
        ("region_description", ("region",)),
        ("visual_question_answering", ("question",)),
    ],
)
def test_a_parameter_without_a_default_is_required_unless_another_may_take_its_place(
    task_id: str, required: tuple[str, ...]
) -> None:
    assert replace(TASKS[task_id]).required == required


def test_there_are_34_languages_and_english() -> None:
    assert len(set(LANGUAGES) - {"en"}) == 34
    assert len(LANGUAGES) == 35


@pytest.mark.parametrize("task_id", IDS)
def test_the_schema_accepts_what_the_check_accepts(task_id: str) -> None:
    task = TASKS[task_id]
    validator = jsonschema.Draft202012Validator(task.json_schema())
    jsonschema.Draft202012Validator.check_schema(task.json_schema())
    for values in VALUES:
        assert validator.is_valid(values) == _is_accepted(task_id, values), values


def _is_accepted(task_id: str, values: dict[str, Any]) -> bool:
    try:
        parse_parameters(TASKS[task_id], values)
    except ParameterError:
        return False
    return True
