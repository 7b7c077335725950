import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY
from starlette.types import Message

from imaging.files import ImageLimits
from service.errors import ErrorCode
from service.http.boundary import STATUSES, RestBoundary
from service.http_app import rest_app
from service.inference.core import Comparison, Core, CoreLimits
from service.inference.prediction import Answer
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    data_url,
    encoded,
    make_core,
    served_models,
)
from tests.support.rest_client import MAX_BODY_BYTES, OCR, SETTINGS, Client, client, error_of
from wire.runner_channel import CallTimedOut, RunnerUnreachable


@dataclass(frozen=True, slots=True)
class Refused:
    code: ErrorCode
    fields: dict[str, Any]
    param: str | None = None


REFUSED = [
    Refused("invalid_request", {**OCR, "labls": []}, "labls"),
    Refused("invalid_request", {**OCR, "max_new_tokens": "5"}, "max_new_tokens"),
    Refused("invalid_request", {"image": OCR["image"]}, "task"),
    Refused("invalid_request", {"task": "ocr"}, "image"),
    Refused("invalid_request", {**OCR, "image": "https://example.org/a.png"}, "image"),
    Refused(
        "invalid_request", {**OCR, "task": "region_description", "region": [0, 0, 9, 5]}, "region"
    ),
    Refused("unknown_model", {**OCR, "model": "florence-3"}, "model"),
    Refused(
        "image_too_large",
        {**OCR, "image": data_url(encoded(Image.new("1", (2000, 1000))))},
        "image",
    ),
    Refused("payload_too_large", {**OCR, "question": "x" * MAX_BODY_BYTES}),
    Refused(
        "unsupported_image",
        {**OCR, "image": data_url(encoded(Image.new("1", (9, 9)), "GIF"))},
        "image",
    ),
    Refused("unsupported_image", {**OCR, "image": "!"}, "image"),
    Refused("unsupported_task", {**OCR, "task": "object_detection", "model": PALIGEMMA_ID}, "task"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.code} {case.param}")
def test_rejected_request_has_the_status_and_body_of_the_contract(case: Refused) -> None:
    error = error_of(client().predict(case.fields))
    assert (error["code"], error["param"]) == (case.code, case.param)
    assert len(error["message"]) < 600


def failing(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RunnerUnreachable("refused"), "not_ready"),
        (CallTimedOut("late"), "deadline_exceeded"),
        (RuntimeError("secret detail"), "internal"),
    ],
)
def test_failed_runner_has_the_status_and_body_of_the_contract(
    failure: Exception, code: str
) -> None:
    response = client(failing(failure)).predict(OCR)
    assert error_of(response)["code"] == code
    assert str(failure) not in response.text


def test_overload_has_retry_after() -> None:
    response = client(make_core(max_pending=0)).predict(OCR)
    assert error_of(response)["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


def test_statuses_are_those_of_the_contract() -> None:
    assert {code: status for code, status in STATUSES.items() if code != "internal"} == {
        "invalid_request": 400,
        "unauthorized": 401,
        "unknown_model": 404,
        "not_found": 404,
        "image_expired": 410,
        "image_too_large": 413,
        "payload_too_large": 413,
        "unsupported_image": 415,
        "unsupported_task": 422,
        "overloaded": 429,
        "not_ready": 503,
        "deadline_exceeded": 504,
    }


class BrokenCore(Core):
    """A core that raises an unexpected exception."""

    async def predict(self, *_: object) -> Answer:
        raise RuntimeError("secret detail")

    async def compare(self, *_: object) -> Comparison:
        raise RuntimeError("secret detail")


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_internal_error_has_a_fixed_message_and_a_log_entry(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = client(
        BrokenCore(served_models(), {}, CoreLimits(ImageLimits(1), 2, 1, 1, 1, 10_000, 10_000))
    )
    response = broken.send("POST", path, json=OCR, headers={"X-Request-Id": "my-id"})
    error = error_of(response)
    assert (error["code"], error["message"]) == (
        "internal",
        "the service failed; the cause is in its log under the request id",
    )
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "request my-id failed"


def test_every_route_answers_not_ready_before_the_start() -> None:
    api = Client(RestBoundary(SETTINGS))
    responses = [
        api.get("/v1/models"),
        api.get("/v1/tasks"),
        api.get("/openapi.json"),
        api.predict(OCR),
        api.compare(OCR),
    ]
    assert [error_of(response)["code"] for response in responses] == ["not_ready"] * 5


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/predict"), ("POST", "/v1/models"), ("GET", "/v1/nothing")]
)
def test_unknown_path_or_method_has_an_error_body(method: str, path: str) -> None:
    response = client().send(method, path)
    assert response.status_code in (404, 405)
    assert set(response.json()["error"]) == {"code", "message", "param", "request_id"}


def test_errors_are_counted_by_code() -> None:
    def count(code: str) -> float:
        labels = {"api": "rest", "model": "none", "task": "none", "status": code}
        return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0

    before = [count(case.code) for case in REFUSED[-2:]]
    for case in REFUSED[-2:]:
        client().predict(case.fields)
    # the last has a model
    assert [count(case.code) for case in REFUSED[-2:]] == [before[0] + 1, before[1]]


def test_error_of_a_model_is_counted_once() -> None:
    def count(model: str) -> float:
        labels = {
            "api": "rest",
            "model": model,
            "task": "ocr" if model != "none" else "none",
            "status": "not_ready",
        }
        return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0

    before = count(FLORENCE_ID), count("none")
    client(failing(RunnerUnreachable("refused"))).predict(OCR)
    assert (count(FLORENCE_ID), count("none")) == (before[0] + 1, before[1])


def test_oversized_body_without_content_length_is_rejected() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(MAX_BODY_BYTES // 1000 + 1):
            yield b"x" * 1000

    response = client().send(
        "POST", "/v1/predict", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert error_of(response)["code"] == "payload_too_large"


@pytest.mark.parametrize(
    "path",
    ["/v1/predict", "/v1/compare", "/v1/chat/completions", "/v2/models/florence-2-mini/infer"],
)
def test_body_is_not_read_when_the_service_is_full(path: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(rest_app(client(make_core(max_pending=0)).boundary)(scope, receive, send))
    assert sent[0]["status"] == 429


@pytest.mark.parametrize(
    "path", ["/v1/predict", "/v1/chat/completions", "/v2/models/florence-2-mini/infer"]
)
def test_a_request_that_fails_before_its_model_gives_its_place_back(path: str) -> None:
    one_place = client(make_core(max_pending=1))
    assert {one_place.send("POST", path, json={}).status_code for _ in range(3)} == {400}
    assert one_place.predict(OCR).status_code == 200
