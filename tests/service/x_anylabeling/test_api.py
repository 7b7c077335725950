"""X-AnyLabeling's protocol: the models it lists, the shapes and descriptions it gets, keys and
errors.
"""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from tasks.table import TASKS
from tests.support.api_keys import api_keys
from tests.support.fake_service import FLORENCE_ID, IMAGE_SIZE_WH, PALIGEMMA_ID, PNG, data_url
from tests.support.rest_client import Client, client, error_of

PATH = "/integrations/x-anylabeling"
# Widgets of X-AnyLabeling 4.2.1, views/labeling/widgets/auto_labeling/auto_labeling.py
# (supported_remote_widgets).
WIDGETS = {
    *(
        "button_send",
        "button_add_rect",
        "button_clear",
        "button_finish_object",
        "button_run",
        "edit_text",
    ),
    *("input_conf", "edit_conf", "input_iou", "edit_iou", "toggle_preserve_existing_annotations"),
    *("mask_fineness_slider", "mask_fineness_value_label"),
}


def post(
    task: str | None,
    model: str = FLORENCE_ID,
    api: Client | None = None,
    headers: Mapping[str, str] = {},
    **params: Any,
) -> httpx.Response:
    body = {
        "model": model,
        "image": data_url(PNG),
        "params": params | ({} if task is None else {"current_task": task}),
    }
    return (api or client()).send("POST", f"{PATH}/v1/predict", json=body, headers=headers)


def data(task: str | None, model: str = FLORENCE_ID, **params: Any) -> dict[str, Any]:
    response = post(task, model, **params)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["success"] is True
    found: dict[str, Any] = body["data"]
    return found


def test_tasks_have_known_widgets() -> None:
    models = client().get(f"{PATH}/v1/models").json()["data"]
    assert list(models) == [FLORENCE_ID, PALIGEMMA_ID]
    tasks = models[FLORENCE_ID]["available_tasks"]
    assert [task["id"] for task in tasks] == list(TASKS)
    for task in tasks:
        assert set(task["active_widgets"]) <= WIDGETS
        assert {"button_run", "button_send", "button_add_rect"} & set(task["active_widgets"])
    shown = client().get(f"{PATH}/v1/models/{PALIGEMMA_ID}/info").json()["data"]
    assert shown == {"model_id": PALIGEMMA_ID, **models[PALIGEMMA_ID]}


@pytest.mark.parametrize("model", [FLORENCE_ID, PALIGEMMA_ID])
@pytest.mark.parametrize("text", ["red circle", " red circle , ", "red circle."])
def test_text_prompt_detects_its_labels(model: str, text: str) -> None:
    (shape,) = data("open_vocabulary_detection", model, text_prompt=text)["shapes"]
    assert (shape["label"], shape["shape_type"], len(shape["points"])) == (
        "red circle",
        "rectangle",
        4,
    )
    (x1, y1), _, (x2, y2), _ = shape["points"]
    assert 0 <= x1 < x2 <= IMAGE_SIZE_WH[0]
    assert 0 <= y1 < y2 <= IMAGE_SIZE_WH[1]
    assert 0 < shape["score"] <= 1


def test_threshold_drops_shapes() -> None:
    assert data("object_detection", conf_threshold=0, iou_threshold=0)["shapes"]
    assert data("object_detection", conf_threshold=1, iou_threshold=0.5)["shapes"] == []


def test_mask_becomes_polygons() -> None:
    (shape,) = data("instance_segmentation", text_prompt="red circle")["shapes"]
    assert (shape["shape_type"], len(shape["points"])) == ("polygon", 3)
    coarse = data(
        "instance_segmentation", PALIGEMMA_ID, text_prompt="red circle", epsilon_factor=0.1
    )["shapes"]
    fine = data("instance_segmentation", PALIGEMMA_ID, text_prompt="red circle", epsilon_factor=0)[
        "shapes"
    ]
    assert sum(len(each["points"]) for each in coarse) <= sum(len(each["points"]) for each in fine)


def test_text_describes_the_image() -> None:
    assert data(None) == {"shapes": [], "description": "a red circle", "replace": False}
    answer = data("visual_question_answering", PALIGEMMA_ID, text_prompt="what is it?")
    assert answer["description"] == "circle"


def test_located_text_is_a_polygon() -> None:
    (shape,) = data("ocr_with_regions")["shapes"]
    assert (shape["shape_type"], shape["label"], shape["description"]) == ("polygon", "text", "HI")


def test_rectangle_is_labelled() -> None:
    width, height = IMAGE_SIZE_WH
    mark = {
        "type": "rectangle",
        "data": [width * 0.1, height * 0.1, width * 0.9, height * 0.9],
        "label": 1,
    }
    (shape,) = data("region_description", marks=[mark])["shapes"]
    assert (shape["label"], shape["points"][2]) == ("circle", [width * 0.9, height * 0.9])


@pytest.mark.parametrize(
    ("task", "params", "status", "name"),
    [
        ("no_task", {}, 400, "no_task"),
        ("open_vocabulary_detection", {}, 400, "labels"),
        ("open_vocabulary_detection", {"text_prompt": " , "}, 400, "labels"),
        ("region_description", {}, 400, "region"),
        ("captioning", {"epsilon_factor": -1}, 400, "params.epsilon_factor"),
        ("captioning", {"marks": [{}]}, 400, "params.marks.0.type"),
        ("captioning", {"conf_threshold": 2}, 400, "params.conf_threshold"),
        ("captioning", {"conf_threshold": 1e400}, 400, "params.conf_threshold"),
        ("captioning", {"iou_threshold": 1e400}, 400, "params.iou_threshold"),
        ("captioning", {"iou_threshold": 10**400}, 400, "params.iou_threshold"),
        (
            "captioning",
            {"marks": [{"type": "rectangle", "data": [1e400]}]},
            400,
            "params.marks.0.data.0",
        ),
        (
            "captioning",
            {"marks": [{"type": "rectangle", "data": [0] * 1001}]},
            400,
            "params.marks.0.data",
        ),
        ("captioning", {"marks": [{"type": "x" * 201, "data": []}]}, 400, "params.marks.0.type"),
        ("captioning", {"marks": [{"type": "point", "data": []}] * 1001}, 400, "params.marks"),
        ("x" * 201, {}, 400, "params.current_task"),
        ("open_vocabulary_detection", {"text_prompt": "a." * 5001}, 400, "params.text_prompt"),
        ("open_vocabulary_detection", {"text_prompt": "\ud800"}, 400, "params.text_prompt"),
    ],
)
def test_invalid_parameter_is_named(
    task: str, params: dict[str, Any], status: int, name: str
) -> None:
    body = json.dumps(
        {"model": FLORENCE_ID, "image": data_url(PNG), "params": {"current_task": task, **params}}
    )
    response = client().send(
        "POST",
        f"{PATH}/v1/predict",
        content=body.replace("Infinity", "1e400"),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == status
    assert name in error_of(response)["message"]


def test_model_that_is_not_served_is_404() -> None:
    assert post("ocr", "no-model").status_code == 404
    assert client().get(f"{PATH}/v1/models/no-model/info").status_code == 404
    assert client().get(f"{PATH}/v1/other").status_code == 404


def test_key_is_the_token() -> None:
    api = client(keys=api_keys("key"))
    assert post("captioning", api=api, headers={"Token": "key"}).status_code == 200
    assert post("captioning", api=api, headers={"Token": "other"}).status_code == 401
    assert post("captioning", api=api, headers={"Token": ""}).status_code == 401
    assert (
        post(
            "captioning", api=api, headers={"Token": "", "Authorization": "Bearer key"}
        ).status_code
        == 200
    )
    assert (
        post(
            "captioning", api=api, headers={"Token": "key", "Authorization": "Bearer key"}
        ).status_code
        == 401
    )
    assert api.get(f"{PATH}/health", headers={"Token": "key"}).json()["models_loaded"] == 2
