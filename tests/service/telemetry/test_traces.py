"""Trace id and spans of requests over HTTP and gRPC, with the real core over fake runners."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from service.admission.api_keys import ApiKeys
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, PNG, florence_fails, make_core
from tests.support.rest_client import OCR, client, grpc_channel
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
from wire.telemetry.tracing import TraceOptions

STAGES = {"admission", "preprocess", "postprocess"}
ANSWER = f"generate_content {FLORENCE_ID}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        tracing.start(TraceOptions(running.url), "diptych")
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


def test_spans_of_a_comparison(collector: Collector) -> None:
    client(florence_fails(RunnerUnreachable("refused"))).compare(OCR)
    made = sent(collector)
    answers = [made[f"generate_content {model}"] for model in (FLORENCE_ID, PALIGEMMA_ID)]
    assert {answer.parent_id for answer in answers} == {made["POST /v1/compare"].span_id}
    assert [(answer.attributes["diptych.status"], answer.has_failed) for answer in answers] == [
        ("not_ready", True),
        ("ok", False),
    ]
    assert not made["POST /v1/compare"].has_failed  # it has an answer


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


async def test_span_of_a_grpc_call(collector: Collector) -> None:
    async with grpc_channel(make_core(), ApiKeys(None)) as channel:
        stub: Any = VisionStub(channel)
        metadata = [("traceparent", TRACEPARENT)]
        await stub.Predict(
            pb.PredictRequest(image=PNG, task="ocr", model=FLORENCE_ID), metadata=metadata
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Compare(pb.CompareRequest(image=PNG, task="none"), metadata=metadata)
    made = sent(collector)
    predict = made["diptych.v1.Vision/Predict"]
    compare = made["diptych.v1.Vision/Compare"]
    assert (predict.trace_id, predict.parent_id, predict.kind) == (TRACE_ID, CALLER_ID, "SERVER")
    assert predict.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": predict.name,
        "rpc.response.status_code": "OK",
    }
    assert made[ANSWER].parent_id == predict.span_id
    assert (compare.attributes["rpc.response.status_code"], compare.has_failed) == (
        "INVALID_ARGUMENT",
        False,
    )


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
