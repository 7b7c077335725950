import math
from typing import Any

import jsonschema
import pytest

from tasks.errors import ParameterError
from tasks.table import (
    MAX_COORDINATE_PX,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_TEXT_CHARS,
    TASKS,
    TaskParameters,
    parse_parameters,
)

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


@pytest.mark.parametrize("task_id", TASKS)
def test_schema_accepts_what_is_parsed(task_id: str) -> None:
    schema = TASKS[task_id].json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    for values in VALUES:
        is_parsed = True
        try:
            parse_parameters(TASKS[task_id], values)
        except ParameterError:
            is_parsed = False
        assert validator.is_valid(values) == is_parsed, values


CAPTIONING = "captioning"
VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
SEGMENTATION = "instance_segmentation"
DESCRIPTION = "region_description"
QUESTION = "visual_question_answering"
REGION = [1, 2.5, 30, 40]
REGION_PX = (1.0, 2.5, 30.0, 40.0)
NUMBERS = [str(number) for number in range(MAX_LABELS + 1)]
LONGEST = "x" * MAX_LABEL_CHARS


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        (CAPTIONING, {}, {"detail": "short", "language": "en"}),
        (CAPTIONING, {"detail": "paragraph", "language": "fil"}, {}),
        ("object_detection", {}, {}),
        (VOCABULARY, {"labels": ["dog", "Käfer "]}, {"labels": ("dog", "Käfer")}),
        (VOCABULARY, {"labels": NUMBERS[:-1]}, {"labels": tuple(NUMBERS[:-1])}),
        (GROUNDING, {"caption": "a cat; a\n dog"}, {"caption": "a cat; a dog"}),
        (GROUNDING, {"phrases": ["a\u00a0 cat"]}, {"phrases": ("a cat",)}),
        (SEGMENTATION, {"phrase": "<loc_5>"}, {}),
        (SEGMENTATION, {"phrase": LONGEST}, {}),
        (SEGMENTATION, {"phrase": " " * 9_999 + "a"}, {"phrase": "a"}),
        (SEGMENTATION, {"phrase": "👩‍🚀"}, {}),
        (SEGMENTATION, {"region": REGION}, {"region": REGION_PX}),
        (DESCRIPTION, {"region": REGION}, {"region": REGION_PX, "detail": "description"}),
        (DESCRIPTION, {"region": REGION, "detail": "text"}, {"region": REGION_PX}),
        (QUESTION, {"question": "why?"}, {"language": "en"}),
    ],
)
def test_parameters_are_typed(
    task_id: str, values: dict[str, Any], expected: dict[str, Any]
) -> None:
    """`expected` has the values that differ from those that are sent."""
    assert parse_parameters(TASKS[task_id], values) == TaskParameters(**values | expected)


def refused(task_id: str, param: str, message: str, **values: object) -> Any:
    return pytest.param(task_id, param, message, values, id=f"{task_id}-{values}"[:60])


@pytest.mark.parametrize(
    ("task_id", "param", "message", "values"),
    [
        refused("ocr", "labels", "not a parameter of ocr; it has no parameters", labels=["a"]),
        refused(CAPTIONING, "labels", "allowed are detail, language", labels=["a"]),
        refused(CAPTIONING, "detail", "one of short, detailed, paragraph, not 'a'", detail="a"),
        refused(CAPTIONING, "detail", "not None", detail=None),
        refused(CAPTIONING, "language", "ar, bn, cs", language="xx"),
        refused(CAPTIONING, "language", r"not \['en'\]", language=["en"]),
        refused(DESCRIPTION, "detail", "category, description", region=REGION, detail="short"),
        refused(VOCABULARY, "labels", "requires labels"),
        refused(VOCABULARY, "labels", "a list of 1 to 32 strings, not 'dog'", labels="dog"),
        refused(VOCABULARY, "labels", "a list of 1 to 32 strings", labels=[]),
        refused(VOCABULARY, "labels", "a list of 1 to 32 strings", labels=NUMBERS),
        refused(VOCABULARY, "labels", r"labels\[1\] must be a string, not 5", labels=["dog", 5]),
        refused(VOCABULARY, "labels", r"labels\[1\] .* 1 to 200", labels=["dog", " \n"]),
        refused(VOCABULARY, "labels", "'Dog' is repeated", labels=["dog", "Dog"]),
        refused(VOCABULARY, "labels", "a string without ';'", labels=["a ; b"]),
        refused(VOCABULARY, "labels", "1 to 200 characters", labels=[LONGEST + "x"]),
        refused(GROUNDING, "caption", "exactly one of caption, phrases; got none"),
        refused(GROUNDING, "phrases", "got caption and phrases", caption="a", phrases=["a"]),
        refused(GROUNDING, "caption", "1 to 1000", caption="x" * (MAX_TEXT_CHARS + 1)),
        refused(GROUNDING, "caption", "at most 10000 characters", caption=" " * 10_000 + "a"),
        refused(SEGMENTATION, "phrase", "exactly one of phrase, phrases, region"),
        refused(SEGMENTATION, "phrase", "a string without ';'", phrase="a;b"),
        refused(SEGMENTATION, "phrase", "1 to 200", phrase=""),
        refused(SEGMENTATION, "phrase", "visible", phrase="\u200b"),
        refused(SEGMENTATION, "phrase", "control characters", phrase="a\x00"),
        refused(SEGMENTATION, "phrase", "lone surrogates", phrase="a\ud800"),
        refused(DESCRIPTION, "region", "requires region"),
        refused(DESCRIPTION, "region", r"4 numbers \[x1, y1, x2, y2\]", region=[1, 2, 3]),
        refused(DESCRIPTION, "region", "4 numbers", region=[1, 2, 3, "4"]),
        refused(DESCRIPTION, "region", "4 numbers", region=[False, 2, 3, True]),
        refused(DESCRIPTION, "region", "4 numbers", region=[1, 2, math.nan, 4]),
        refused(DESCRIPTION, "region", "4 numbers", region=[1, 2, 10**400, 4]),
        refused(DESCRIPTION, "region", "4 numbers", region={"x1": 0}),
        refused(DESCRIPTION, "region", f"from 0 to {MAX_COORDINATE_PX}", region=[-1, 2, 3, 4]),
        refused(DESCRIPTION, "region", "4 numbers", region=[0, 0, MAX_COORDINATE_PX + 1, 4]),
        refused(DESCRIPTION, "region", "x1 < x2 and y1 < y2", region=[1, 2, 3, 2]),
        refused(DESCRIPTION, "region", "x1 < x2 and y1 < y2", region=[1, 2, 1, 3]),
        refused(QUESTION, "question", "requires question: The question."),
        refused(QUESTION, "question", "must be a string", question=7),
    ],
)
def test_bad_parameters_are_refused(
    task_id: str, param: str, message: str, values: dict[str, object]
) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        parse_parameters(TASKS[task_id], values)
    assert caught.value.param == param


def test_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ParameterError) as caught:
        parse_parameters(TASKS[SEGMENTATION], {"phrase": "x" * 100_000})
    assert len(str(caught.value)) < 250
