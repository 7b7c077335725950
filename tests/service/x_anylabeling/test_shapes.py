"""Answers as shapes of X-AnyLabeling, in pixels, and parameters of a call as fields."""

from typing import Any

import pytest

from service.x_anylabeling.api import Call, request_fields, shapes_json
from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tests.support.typed_answers import typed_answer

BOX: BoxXyxy = (20, 10, 120, 60)
CORNERS = [[20, 10], [120, 10], [120, 60], [20, 60]]
QUAD = ((21.0, 10.0), (120.0, 11.0), (119.0, 60.0), (20.0, 59.0))
SQUARE: Ring = ((20, 10), (120, 10), (120, 60), (20, 60))
HOLE: Ring = ((40, 20), (60, 20), (60, 40), (40, 40))
ISLAND: Ring = ((45, 25), (55, 25), (55, 35), (45, 35))  # inside the hole
DENT: Ring = ((20, 10), (70, 13), (120, 10), (120, 60), (20, 60))  # its perimeter is 300


def instances(*rings: Ring) -> InstancesResult:
    return InstancesResult((Instance(BOX, "dog", 0.5, rings, None),), True)


def shapes(result: Result, epsilon_factor: float = 0.0, region: BoxXyxy | None = None) -> list[Any]:
    data = shapes_json(typed_answer(result), epsilon_factor, region)
    assert data["description"] == ""
    return [
        (each["shape_type"], each["label"], each["points"], each["score"])
        for each in data["shapes"]
    ]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            DetectionsResult((Detection(BOX, "dog", 0.5),), True),
            [("rectangle", "dog", CORNERS, 0.5)],
        ),
        (
            DetectionsResult((Detection(BOX, "", 0.5),), True),
            [("rectangle", "object", CORNERS, 0.5)],
        ),
        (DetectionsResult((), True), []),
        (
            TextRegionsResult((TextRegion(QUAD, "HI", 0.5),), True),
            [("polygon", "text", [*map(list, QUAD)], 0.5)],
        ),
        (instances(SQUARE), [("polygon", "dog", CORNERS, 0.5)]),
        (instances(SQUARE, HOLE), [("polygon", "dog", CORNERS, 0.5)]),
        (
            instances(SQUARE, HOLE, ISLAND),
            [("polygon", "dog", CORNERS, 0.5), ("polygon", "dog", [*map(list, ISLAND)], 0.5)],
        ),
        (instances(SQUARE[:2]), []),
        (instances(), []),
    ],
)
def test_result_becomes_shapes(result: Result, expected: list[Any]) -> None:
    assert shapes(result) == expected


@pytest.mark.parametrize(("epsilon_factor", "num_points"), [(0, 5), (0.009, 5), (0.011, 4)])
def test_tolerance_is_a_share_of_the_perimeter(epsilon_factor: float, num_points: int) -> None:
    ((_, _, points, _),) = shapes(instances(DENT), epsilon_factor)
    assert len(points) == num_points


def test_text_of_a_region_is_a_label() -> None:
    assert shapes(TextResult("dog", True), region=BOX) == [("rectangle", "dog", CORNERS, None)]


MARKS = [
    {"type": "rectangle", "data": [1, 2, 3, 4]},
    {"type": "rectangle", "data": [5, 6, 7, 8]},
    {"type": "point", "data": [9, 9]},
]


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        ({}, {"task": "captioning", "min_score": 0}),
        ({"current_task": "ocr", "conf_threshold": 0.5}, {"task": "ocr", "min_score": 0.5}),
        (
            {"current_task": "ocr", "iou_threshold": 0.5},
            {"task": "ocr", "min_score": 0, "nms_iou": 0.5},
        ),
        ({"current_task": "ocr", "iou_threshold": 0}, {"task": "ocr", "min_score": 0}),
        ({"current_task": "ocr", "iou_threshold": 1}, {"task": "ocr", "min_score": 0}),
        (
            {"current_task": "ocr", "text_prompt": "a", "marks": MARKS},
            {"task": "ocr", "min_score": 0},
        ),
        (
            {"current_task": "open_vocabulary_detection", "text_prompt": " a b, c;d . ,e"},
            {"task": "open_vocabulary_detection", "min_score": 0, "labels": ["a b", "c", "d", "e"]},
        ),
        (
            {"current_task": "phrase_grounding", "text_prompt": "a, b"},
            {"task": "phrase_grounding", "min_score": 0, "caption": "a, b"},
        ),
        (
            {"current_task": "region_description", "marks": MARKS},
            {
                "task": "region_description",
                "min_score": 0,
                "region": [5, 6, 7, 8],
                "detail": "category",
            },
        ),
    ],
)
def test_parameters_become_fields(params: dict[str, Any], fields: dict[str, Any]) -> None:
    call = Call.model_validate({"model": "m", "params": params})
    assert request_fields(call, ("captioning", "ocr")) == {"model": "m", **fields}
