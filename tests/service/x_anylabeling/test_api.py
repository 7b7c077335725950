"""X-AnyLabeling's protocol: the models it lists, the shapes and descriptions it gets, keys and
errors.
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx
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
)
from tasks.table import TASKS
from tests.support.api_keys import api_keys
from tests.support.fake_service import (
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PALIGEMMA_ID,
    PNG,
    data_url,
    typed_answer,
)
from tests.support.rest_client import Client, client, error_of

PATH = "/integrations/x-anylabeling"
# Widgets of X-AnyLabeling 4.2.1, views/labeling/widgets/auto_labeling/auto_labeling.py
# (supported_remote_widgets).
WIDGETS = {
    *("button_send", "button_add_rect", "button_clear", "button_finish_object", "button_run"),
    *("edit_text", "input_conf", "edit_conf", "input_iou", "edit_iou"),
    *("toggle_preserve_existing_annotations", "mask_fineness_slider", "mask_fineness_value_label"),
}


def post(
    task: str | None,
    model: str = FLORENCE_ID,
    api: Client | None = None,
    headers: Mapping[str, str] = {},
    **params: Any,
) -> httpx.Response:
    if task is not None:
        params["current_task"] = task
    body = {"model": model, "image": data_url(PNG), "params": params}
    return (api or client()).send("POST", f"{PATH}/v1/predict", json=body, headers=headers)


def data(task: str | None, model: str = FLORENCE_ID, **params: Any) -> dict[str, Any]:
    body: dict[str, Any] = post(task, model, **params).json()
    assert body.pop("success") is True
    return dict(body["data"])


def test_tasks_have_known_widgets() -> None:
    models = client().get(f"{PATH}/v1/models").json()["data"]
    assert list(models) == [FLORENCE_ID, PALIGEMMA_ID]
    tasks = models[FLORENCE_ID]["available_tasks"]
    assert [task["id"] for task in tasks] == list(TASKS)
    tasks_of: dict[str, list[str]] = {}
    for task in tasks:
        assert set(task["active_widgets"]) <= WIDGETS
        for widget in task["active_widgets"]:
            tasks_of.setdefault(widget, []).append(task["id"])
    assert tasks_of["button_add_rect"] == ["region_description"]
    assert tasks_of["mask_fineness_slider"] == ["instance_segmentation"]
    assert len(tasks_of["button_send"]) == len(tasks_of["edit_text"]) == 4
    assert len(tasks_of["button_run"]) == len(TASKS) - 5
    info = client().get(f"{PATH}/v1/models/{PALIGEMMA_ID}/info").json()["data"]
    assert info == {"model_id": PALIGEMMA_ID, **models[PALIGEMMA_ID]}


def test_text_describes_the_image() -> None:
    assert data(None) == {"shapes": [], "description": "a red circle", "replace": False}
    answer = data("visual_question_answering", PALIGEMMA_ID, text_prompt="what is it?")
    assert answer["description"] == "circle"


def test_rectangle_is_labelled() -> None:
    width, height = IMAGE_SIZE_WH
    box = [width * 0.1, height * 0.1, width * 0.9, height * 0.9]
    mark = {"type": "rectangle", "data": box, "label": 1}
    (shape,) = data("region_description", marks=[mark])["shapes"]
    assert (shape["label"], shape["points"][2]) == ("circle", box[2:])
    assert (shape["shape_type"], shape["score"]) == ("rectangle", None)


@pytest.mark.parametrize(
    ("task", "params", "name"),
    [
        ("no_task", {}, "no_task"),
        ("open_vocabulary_detection", {"text_prompt": " , "}, "labels"),
        ("region_description", {}, "region"),
        ("captioning", {"marks": [{}]}, "params.marks.0.type"),
        ("captioning", {"conf_threshold": 1e400}, "params.conf_threshold"),
        ("captioning", {"iou_threshold": 10**400}, "params.iou_threshold"),
        ("captioning", {"marks": [{"type": "x", "data": [1e400]}]}, "params.marks.0.data.0"),
    ],
)
def test_invalid_parameter_is_named(task: str, params: dict[str, Any], name: str) -> None:
    call = {"model": FLORENCE_ID, "image": data_url(PNG)}
    body = json.dumps({**call, "params": {"current_task": task, **params}})
    content = body.replace("Infinity", "1e400")
    headers = {"Content-Type": "application/json"}
    response = client().send("POST", f"{PATH}/v1/predict", content=content, headers=headers)
    assert response.status_code == 400
    assert name in error_of(response)["message"]


def test_model_that_is_not_served_is_404() -> None:
    assert post("ocr", "no-model").status_code == 404
    assert client().get(f"{PATH}/v1/models/no-model/info").status_code == 404
    assert client().get(f"{PATH}/v1/other").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Token": "key"}, 200),
        ({"Token": "other"}, 401),
        ({"Token": ""}, 401),
        ({"Token": "", "Authorization": "Bearer key"}, 200),
        ({"Token": "key", "Authorization": "Bearer key"}, 401),
    ],
)
def test_key_is_the_token(headers: dict[str, str], status: int) -> None:
    api = client(keys=api_keys("key"))
    assert post("captioning", api=api, headers=headers).status_code == status
    assert api.get(f"{PATH}/health", headers=headers).status_code == status


BOX: BoxXyxy = (20, 10, 120, 60)
CORNERS = [[20, 10], [120, 10], [120, 60], [20, 60]]
QUAD = ((21.0, 10.0), (120.0, 11.0), (119.0, 60.0), (20.0, 59.0))
SQUARE: Ring = ((20, 10), (120, 10), (120, 60), (20, 60))
HOLE: Ring = ((40, 20), (60, 20), (60, 40), (40, 40))
DENT: Ring = ((20, 10), (70, 13), (120, 10), (120, 60), (20, 60))  # its perimeter is 300


def instances(*rings: Ring) -> InstancesResult:
    return InstancesResult((Instance(BOX, "dog", 0.5, rings, None),), True)


def detections(*labels: str) -> DetectionsResult:
    return DetectionsResult(tuple(Detection(BOX, label, 0.5) for label in labels), True)


def shapes(result: Result, epsilon_factor: float = 0.0) -> list[Any]:
    answer = shapes_json(typed_answer(result), epsilon_factor, None)
    assert answer["description"] == ""
    names = ("shape_type", "label", "points", "score")
    return [tuple(shape[name] for name in names) for shape in answer["shapes"]]


DOG = ("polygon", "dog", CORNERS, 0.5)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (detections("dog"), [("rectangle", "dog", CORNERS, 0.5)]),
        (detections(""), [("rectangle", "object", CORNERS, 0.5)]),
        (detections(), []),
        (
            TextRegionsResult((TextRegion(QUAD, "HI", 0.5),), True),
            [("polygon", "text", [*map(list, QUAD)], 0.5)],
        ),
        (instances(SQUARE, HOLE), [DOG]),
    ],
)
def test_result_becomes_shapes(result: Result, expected: list[Any]) -> None:
    assert shapes(result) == expected


@pytest.mark.parametrize(("epsilon_factor", "num_points"), [(0, 5), (0.009, 5), (0.011, 4)])
def test_tolerance_is_a_share_of_the_perimeter(epsilon_factor: float, num_points: int) -> None:
    ((_, _, points, _),) = shapes(instances(DENT), epsilon_factor)
    assert len(points) == num_points


MARKS = [
    {"type": "rectangle", "data": [1, 2, 3, 4]},
    {"type": "rectangle", "data": [5, 6, 7, 8]},
    {"type": "point", "data": [9, 9]},
]


@pytest.mark.parametrize(
    ("task", "params", "fields"),
    [
        ("captioning", {}, {}),
        ("ocr", {"conf_threshold": 0.5}, {"min_score": 0.5}),
        ("ocr", {"iou_threshold": 0.5}, {"nms_iou": 0.5}),
        ("ocr", {"iou_threshold": 0}, {}),
        ("ocr", {"iou_threshold": 1}, {}),
        ("ocr", {"text_prompt": "a", "marks": MARKS}, {}),
        (
            "open_vocabulary_detection",
            {"text_prompt": " a b, c;d . ,e"},
            {"labels": ["a b", "c", "d", "e"]},
        ),
        ("phrase_grounding", {"text_prompt": "a, b"}, {"caption": "a, b"}),
        ("region_description", {"marks": MARKS}, {"region": [5, 6, 7, 8], "detail": "category"}),
    ],
)
def test_parameters_become_fields(
    task: str, params: dict[str, Any], fields: dict[str, Any]
) -> None:
    task_field = {} if task == "captioning" else {"current_task": task}  # the first is the default
    call = Call.model_validate({"model": "m", "params": params | task_field})
    expected = {"model": "m", "task": task, "min_score": 0} | fields
    assert request_fields(call, ("captioning", "ocr")) == expected
