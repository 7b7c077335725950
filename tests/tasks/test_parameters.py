import math
from typing import Any

import pytest

from tasks.errors import ParameterError
from tasks.parameter_kinds import MAX_COORDINATE_PX, MAX_LABEL_CHARS, MAX_LABELS, MAX_TEXT_CHARS
from tasks.parameters import TaskParameters, parse_parameters
from tasks.table import TASKS

REGION = [1, 2.5, 30, 40]


def parse(task_id: str, **values: Any) -> TaskParameters:
    return parse_parameters(TASKS[task_id], values)


@pytest.mark.parametrize(
    ("task_id", "values", "expected"),
    [
        ("captioning", {}, TaskParameters(detail="short", language="en")),
        (
            "captioning",
            {"detail": "paragraph", "language": "fil"},
            TaskParameters(detail="paragraph", language="fil"),
        ),
        ("object_detection", {}, TaskParameters()),
        (
            "open_vocabulary_detection",
            {"labels": ["dog", "Käfer "]},
            TaskParameters(labels=("dog", "Käfer")),
        ),
        ("phrase_grounding", {"caption": "a cat; a\n dog"}, TaskParameters(caption="a cat; a dog")),
        ("phrase_grounding", {"phrases": ["a\u00a0 cat"]}, TaskParameters(phrases=("a cat",))),
        ("instance_segmentation", {"phrase": "<loc_5>"}, TaskParameters(phrase="<loc_5>")),
        (
            "instance_segmentation",
            {"region": REGION},
            TaskParameters(region=(1.0, 2.5, 30.0, 40.0)),
        ),
        (
            "region_description",
            {"region": REGION},
            TaskParameters(region=(1.0, 2.5, 30.0, 40.0), detail="description"),
        ),
        (
            "region_description",
            {"region": REGION, "detail": "text"},
            TaskParameters(region=(1.0, 2.5, 30.0, 40.0), detail="text"),
        ),
        (
            "visual_question_answering",
            {"question": "why?"},
            TaskParameters(question="why?", language="en"),
        ),
        (
            "open_vocabulary_detection",
            {"labels": [str(n) * 1 for n in range(MAX_LABELS)]},
            TaskParameters(labels=tuple(map(str, range(MAX_LABELS)))),
        ),
        (
            "instance_segmentation",
            {"phrase": "x" * MAX_LABEL_CHARS},
            TaskParameters(phrase="x" * MAX_LABEL_CHARS),
        ),
        ("instance_segmentation", {"phrase": " " * 9_999 + "a"}, TaskParameters(phrase="a")),
        ("instance_segmentation", {"phrase": "👩‍🚀"}, TaskParameters(phrase="👩‍🚀")),
    ],
)
def test_parameters_are_typed_and_cleaned(
    task_id: str, values: dict[str, Any], expected: TaskParameters
) -> None:
    assert parse(task_id, **values) == expected


@pytest.mark.parametrize(
    ("task_id", "values", "param", "message"),
    [
        (
            "ocr",
            {"labels": ["a"]},
            "labels",
            "labels is not a parameter of ocr; it has no parameters",
        ),
        ("captioning", {"labels": ["a"]}, "labels", "allowed are detail, language"),
        (
            "captioning",
            {"detail": "long"},
            "detail",
            "must be one of short, detailed, paragraph, not 'long'",
        ),
        ("captioning", {"detail": "category"}, "detail", "must be one of short"),
        (
            "region_description",
            {"region": REGION, "detail": "short"},
            "detail",
            "category, description, text",
        ),
        ("captioning", {"detail": None}, "detail", "not None"),
        ("captioning", {"language": "xx"}, "language", "ar, bn, cs"),
        ("captioning", {"language": ["en"]}, "language", r"not \['en'\]"),
        ("open_vocabulary_detection", {}, "labels", "requires labels"),
        (
            "open_vocabulary_detection",
            {"labels": "dog"},
            "labels",
            "a list of 1 to 32 strings, not 'dog'",
        ),
        ("open_vocabulary_detection", {"labels": []}, "labels", "a list of 1 to 32 strings"),
        (
            "open_vocabulary_detection",
            {"labels": list("abcdefghijklmnopqrstuvwxyz1234567")},
            "labels",
            "1 to 32",
        ),
        (
            "open_vocabulary_detection",
            {"labels": ["dog", 5]},
            "labels",
            r"labels\[1\] must be a string, not 5",
        ),
        (
            "open_vocabulary_detection",
            {"labels": ["dog", " \n"]},
            "labels",
            r"labels\[1\] must be a string of 1 to 200",
        ),
        ("open_vocabulary_detection", {"labels": ["dog", "Dog"]}, "labels", "'Dog' is repeated"),
        ("open_vocabulary_detection", {"labels": ["a ; b"]}, "labels", "a string without ';'"),
        ("open_vocabulary_detection", {"labels": ["x" * 201]}, "labels", "1 to 200 characters"),
        ("phrase_grounding", {}, "caption", "exactly one of caption, phrases; got none"),
        (
            "phrase_grounding",
            {"caption": "a", "phrases": ["a"]},
            "phrases",
            "got caption and phrases",
        ),
        ("phrase_grounding", {"caption": "x" * (MAX_TEXT_CHARS + 1)}, "caption", "1 to 1000"),
        (
            "phrase_grounding",
            {"caption": " " * 10_000 + "a"},
            "caption",
            "at most 10000 characters, white space incl",
        ),
        ("phrase_grounding", {"phrases": ["a;b"]}, "phrases", "a string without ';'"),
        ("instance_segmentation", {}, "phrase", "exactly one of phrase, phrases, region"),
        ("instance_segmentation", {"phrase": "a;b"}, "phrase", "a string without ';'"),
        ("instance_segmentation", {"phrase": ""}, "phrase", "1 to 200"),
        ("instance_segmentation", {"phrase": "\u200b"}, "phrase", "visible"),
        ("instance_segmentation", {"phrase": "a\x00"}, "phrase", "control characters"),
        ("instance_segmentation", {"phrase": "a\ud800"}, "phrase", "lone surrogates"),
        ("region_description", {}, "region", "requires region"),
        ("region_description", {"region": [1, 2, 3]}, "region", r"4 numbers \[x1, y1, x2, y2\]"),
        ("region_description", {"region": [1, 2, 3, "4"]}, "region", "4 numbers"),
        ("region_description", {"region": [False, 2, 3, True]}, "region", "4 numbers"),
        ("region_description", {"region": [1, 2, math.nan, 4]}, "region", "4 numbers"),
        ("region_description", {"region": [1, 2, math.inf, 4]}, "region", "4 numbers"),
        ("region_description", {"region": [1, 2, 10**400, 4]}, "region", "4 numbers"),
        (
            "region_description",
            {"region": [-1, 2, 3, 4]},
            "region",
            f"from 0 to {MAX_COORDINATE_PX}",
        ),
        ("region_description", {"region": [3, 2, 1, 4]}, "region", "x1 < x2 and y1 < y2"),
        ("region_description", {"region": [1, 2, 3, 2]}, "region", "x1 < x2 and y1 < y2"),
        ("region_description", {"region": [1, 2, 1, 3]}, "region", "x1 < x2 and y1 < y2"),
        ("region_description", {"region": {"x1": 0}}, "region", "4 numbers"),
        ("visual_question_answering", {}, "question", "requires question: The question."),
        ("visual_question_answering", {"question": 7}, "question", "must be a string"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    task_id: str, values: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        parse(task_id, **values)
    assert caught.value.param == param


def test_a_long_value_is_shown_cut() -> None:
    with pytest.raises(ParameterError) as caught:
        parse("instance_segmentation", phrase="x" * 100_000)
    assert len(str(caught.value)) < 250
