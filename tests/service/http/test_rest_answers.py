import re
from typing import Any

import pytest

from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, PNG, data_url
from tests.support.rest_client import client, fits


def test_prediction_from_json_is_the_body_of_the_contract() -> None:
    response = client().predict(
        {"image": data_url(PNG), "task": "object_detection"}, X_Request_Id="my-id"
    )
    body = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert fits(body, "AnswerJson")
    assert (body["id"], body["model"], body["task"]) == ("my-id", FLORENCE_ID, "object_detection")
    (detection,) = body["result"]["detections"]
    assert detection["box"] == pytest.approx([64.32, 96.24, 320.32, 288.24])
    assert body["raw_text"] == "red circle<loc_100><loc_200><loc_500><loc_600>"


def test_prediction_from_a_form_equals_that_from_json() -> None:
    fields = {
        "task": "open_vocabulary_detection",
        "labels": ["red circle", "blue square"],
        "max_new_tokens": 50,
    }
    form = client().send("POST", "/v1/predict", files={"image": ("a.png", PNG)}, data=fields)
    from_json = client().predict({"image": data_url(PNG), **fields})
    assert form.status_code == from_json.status_code == 200
    assert form.json()["result"] == from_json.json()["result"]


def test_tiles_of_a_form_and_of_json_are_the_same_and_match_the_document() -> None:
    fields = {"task": "object_detection", "overlap": 0}
    form = client().send(
        "POST", "/v1/predict", files={"image": ("a.png", PNG)}, data={**fields, "tiles": "1x2"}
    )
    from_json = client().predict(
        {"image": data_url(PNG), **fields, "tiles": {"rows": 1, "columns": 2}}
    )
    assert fits(form.json(), "AnswerJson")
    tiles = {"rows": 1, "columns": 2, "asked": 0, "skipped": 2, "merged": 0}
    assert form.json()["tiles"] == from_json.json()["tiles"] == tiles
    refused = client().predict({"image": data_url(PNG), "task": "captioning", "tiles": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tiles")


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "captioning"},
        {"task": "open_vocabulary_detection", "labels": ["red circle"]},
        {"task": "instance_segmentation", "phrase": "red circle"},
        {"task": "instance_segmentation", "phrase": "red circle", "mask_format": "rle"},
        {"task": "ocr_with_regions"},
        {"task": "visual_question_answering", "question": "what is it?"},
    ],
)
def test_answers_of_every_kind_match_the_openapi_document(fields: dict[str, Any]) -> None:
    prediction = client().predict({"image": data_url(PNG), **fields})
    comparison = client().compare({"image": data_url(PNG), **fields})
    assert (prediction.status_code, comparison.status_code) == (200, 200)
    assert fits(prediction.json(), "AnswerJson")
    assert fits(comparison.json(), "ComparisonJson")
    assert len(prediction.json()["result"]) == 1


def test_comparison_has_answers_and_errors_in_catalog_order() -> None:
    fields = {
        "image": data_url(PNG),
        "task": "object_detection",
        "models": [PALIGEMMA_ID, FLORENCE_ID],
    }
    response = client().compare(fields, X_Request_Id="my-id")
    body = response.json()
    assert response.status_code == 200
    assert fits(body, "ComparisonJson")
    assert (body["id"], body["task"], body["image"]) == (
        "my-id",
        "object_detection",
        {"width": 640, "height": 480},
    )
    florence, paligemma = body["answers"]
    assert (florence["id"], florence["model"]) == ("my-id", FLORENCE_ID)
    assert set(paligemma) == {"model", "error"}
    assert paligemma["model"] == PALIGEMMA_ID
    assert {name: paligemma["error"][name] for name in ("code", "param", "request_id")} == {
        "code": "unsupported_task",
        "param": "task",
        "request_id": "my-id",
    }


def test_listings_and_document_are_served() -> None:
    api = client()
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [
        FLORENCE_ID,
        PALIGEMMA_ID,
    ]
    assert len(api.get("/v1/tasks").json()["data"]) == 11
    assert api.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_catalog_parameter_adds_the_columns_of_the_catalog() -> None:
    api = client()
    assert all(
        "served" not in model for model in api.get("/v1/models?catalog=false").json()["data"]
    )
    assert [model["served"] for model in api.get("/v1/models?catalog=true").json()["data"]] == [
        True,
        True,
    ]
    response = api.get("/v1/models?catalog=yes")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "catalog"
    assert "catalog must be true or false, not 'yes'" in response.json()["error"]["message"]


def test_docs_page_loads_nothing_from_another_host() -> None:
    response = client().get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert re.findall(r"https?://|//[a-z]+\.", response.text) == []
