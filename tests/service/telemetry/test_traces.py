"""Trace id and spans of requests over HTTP and gRPC, with the real core over fake runners."""

from collections.abc import Iterator

import pytest

from tests.support.fake_service import FLORENCE_ID, florence_fails
from tests.support.rest_client import OCR, client
from tests.support.trace_collector import (
    CALLER_ID,
    TRACE_ID,
    TRACEPARENT,
    CollectedSpan,
    Collector,
    collecting,
)
from wire.runner_channel import RunnerUnreachable
from wire.telemetry import tracing

STAGES = {"admission", "preprocess", "postprocess"}
ANSWER = f"generate_content {FLORENCE_ID}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        tracing.start(running.url, "diptych")
        try:
            yield running
        finally:
            tracing.stop()


def sent(collector: Collector) -> dict[str, CollectedSpan]:
    """Return all exported spans by name."""
    tracing.stop()
    return {span.name: span for span in collector.spans}


def test_spans_of_an_answer(collector: Collector) -> None:
    fields = {**OCR, "model": FLORENCE_ID}
    client().predict(fields, traceparent=TRACEPARENT, X_Request_Id="mine")
    made = sent(collector)
    assert {span.trace_id for span in made.values()} == {TRACE_ID}
    assert set(made) == {"POST /v1/predict", ANSWER} | STAGES
    request = made["POST /v1/predict"]
    answer = made[ANSWER]
    assert (request.parent_id, request.kind) == (CALLER_ID, "SERVER")
    assert answer.parent_id == request.span_id
    assert {made[stage].parent_id for stage in STAGES} == {answer.span_id}
    http = {"request.method": "POST", "route": "/v1/predict", "response.status_code": 200}
    expected = {f"http.{name}": value for name, value in http.items()}
    assert request.attributes == expected | {"url.scheme": "http"}
    assert answer.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "diptych",
        "gen_ai.request.model": FLORENCE_ID,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 42,
        "gen_ai.usage.output_tokens": 2,
        "diptych.task": "ocr",
        "diptych.request_id": "mine",
        "diptych.status": "ok",
        "diptych.image_tokens": 37,
        "diptych.image_width": 8,
        "diptych.image_height": 8,
        "diptych.vision_cache": "miss",
    }


@pytest.mark.parametrize(
    ("failure", "fields", "status", "code", "has_failed"),
    [
        (None, {"unknown": "purple-elephant"}, 400, "invalid_request", False),
        (RunnerUnreachable("purple-elephant"), {}, 503, "not_ready", True),
        (RuntimeError("purple-elephant"), {}, 500, "internal", True),
    ],
)
def test_failed_spans(
    collector: Collector,
    failure: Exception | None,
    fields: dict[str, str],
    status: int,
    code: str,
    has_failed: bool,
) -> None:
    asked = {**OCR, "model": FLORENCE_ID, **fields}
    assert client(florence_fails(failure) if failure else None).predict(asked).status_code == status
    request = sent(collector)["POST /v1/predict"]
    assert request.attributes["http.response.status_code"] == status
    assert (request.attributes["diptych.status"], request.has_failed) == (code, has_failed)
    assert request.attributes.get("error.type") == (code if has_failed else None)
    assert not any(b"purple-elephant" in span.bytes for span in collector.spans)


def test_spans_are_named_by_route(collector: Collector) -> None:
    for path in (
        "/livez",
        "/playground",
        "/none",
        "/v1/models/purple-elephant",
        "/v1/purple-elephant",
    ):
        assert client().get(path).headers["x-trace-id"]
    client().send("BREW", "/v1/tasks")
    assert set(sent(collector)) == {
        "GET /v1/models/{model_id}",
        "GET /v1/{path:path}",
        "_OTHER /v1/tasks",
    }
    assert not any(
        b"purple-elephant" in span.bytes or b"BREW" in span.bytes for span in collector.spans
    )
