"""Bodies, prompts and labelling configurations that are refused, with the field's name."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.support.fake_service import PNG, data_url
from tests.support.label_studio_config import labelled, view
from tests.support.rest_client import Client, client, error_of

PATH = "/integrations/label-studio"
RED_CIRCLE = view(labelled("RectangleLabels", "red circle"))
CAPTION = '<TextArea name="caption" toName="image"/>'


def post(name: str, body: Mapping[str, Any], api: Client | None = None) -> httpx.Response:
    """Send a body as Python writes it: with lone surrogates, and infinity as a number that is too
    large.
    """
    content = json.dumps(body).replace("Infinity", "1e400")
    return (api or client()).send("POST", f"{PATH}/{name}", content=content)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"x": 10**400, "y": 1, "width": 1, "height": 1}, "context.result.x"),
        ({"x": 1, "y": 1e400, "width": 1, "height": 1}, "context.result.y"),
        ({"x": 1, "y": 1, "width": -1e400, "height": 1}, "context.result.width"),
        ({"x": 1, "y": 1, "width": 1, "height": "1"}, "context.result.height"),
        ({"x": 1, "y": 1, "width": 1, "height": True}, "context.result.height"),
        ({"x": 1, "y": 1, "width": 1, "height": 1_000_001}, "context.result.height"),
        ({"x": 1, "y": 1, "width": -1, "height": 1}, "context.result"),
        ({"text": 5}, "context.result.text"),
        ({"text": ["a", 5]}, "context.result.text"),
        ({"text": [["a"] * 10]}, "context.result.text"),
        ({"text": ["a"] * 101}, "context.result.text"),
        ({"text": ["a" * 5000, "b" * 5000]}, "context.result.text"),
        ({"text": ["\ud800"]}, "params.context.result.0.value.text.0"),
        ("x", "context.result"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_prompt_out_of_range_is_refused(value: object, param: str) -> None:
    context = {"result": [{"type": "rectanglelabels", "value": value}]}
    body = {
        "tasks": [{"data": {"image": data_url(PNG)}}],
        "label_config": view(labelled("PolygonLabels", "a")),
        "params": {"context": context},
    }
    error = error_of(post("predict", body))
    assert (error["code"], error["param"]) == ("invalid_request", param), error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tasks": [{"id": "\ud800"}], "label_config": RED_CIRCLE}, "tasks.0.id"),
        (
            {"tasks": [{"data": {"image": "/\udfff"}}], "label_config": RED_CIRCLE},
            "tasks.0.data.image",
        ),
        ({"tasks": [{}], "label_config": RED_CIRCLE.replace("red", "\ud800")}, "label_config"),
        ({"tasks": [{}], "label_config": RED_CIRCLE, "project": "\ud800"}, "project"),
        ({"tasks": [{}] * 1001, "label_config": RED_CIRCLE}, "tasks"),
        ({"tasks": [], "label_config": RED_CIRCLE}, "tasks"),
        ({"tasks": [[[]]], "label_config": RED_CIRCLE}, "tasks.0"),
        ({"tasks": [{}]}, "label_config"),
        (
            {
                "tasks": [{}],
                "label_config": view(CAPTION.replace("/>", ' model_score_threshold="1e400"/>')),
            },
            "min_score",
        ),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_invalid_body_is_refused_by_name(body: Mapping[str, Any], param: str) -> None:
    error = error_of(post("predict", body))
    assert (error["code"], error["param"]) == ("invalid_request", param), error


def test_nesting_of_a_body_is_bounded() -> None:
    api = client(values=Settings(max_body_bytes=1_000_000))
    error = error_of(
        post(
            "predict", {"tasks": [{"data": {"a": [[]] * 100_000}}], "label_config": RED_CIRCLE}, api
        )
    )
    assert error["message"] == "the body has more than 100000 lists and objects"


@pytest.mark.parametrize(
    ("config", "code", "reason"),
    [
        (view(labelled("KeyPointLabels", "a")), "invalid_request", "KeyPointLabels"),
        (view(labelled("RectangleLabels", "a;b")), "invalid_request", "without ';'"),
        (
            view('<TextArea name="t" toName="image" model_task="x"/>'),
            "invalid_request",
            "captioning, ocr, visual",
        ),
        (
            view('<TextArea name="t" toName="image" model_detail="x"/>'),
            "invalid_request",
            "short, detailed",
        ),
        (
            view('<TextArea name="t" toName="image" perRegion="true"/>'),
            "invalid_request",
            "needs one of Rectangle",
        ),
        (
            view(labelled("RectangleLabels", "a", attributes='model_score_threshold="x"')),
            "invalid_request",
            "model_score_threshold",
        ),
    ],
)
def test_setup_refuses_a_configuration(config: str, code: str, reason: str) -> None:
    error = error_of(post("setup", {"schema": config}))
    assert (error["code"], reason in error["message"]) == (code, True), error


def test_number_of_predictions_is_limited() -> None:
    config = view(
        labelled("PolygonLabels", *map(str, range(251))),
        labelled("BrushLabels", *map(str, range(250))),
    )
    error = error_of(post("setup", {"schema": config}))
    assert (
        "needs 501 predictions of an image; the maximum is 500: use fewer labels"
        in error["message"]
    )
    assert error["param"] == "label_config"
    fits = view(labelled("RectangleLabels", *map(str, range(1000))))
    assert post("setup", {"schema": fits}).status_code == 200
