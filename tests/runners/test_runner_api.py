"""The HTTP API of a runner: what is refused unread, the features that a call reads, its stream, its
span.
"""

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from runners.encoder.features_cache import CachedFeatures
from runners.model_worker import ModelWorker
from runners.runner_api import CallGuard, RunnerApi, TracedCalls
from tests.support.trace_collector import collecting
from wire.pixels import BUILD_HEADER, IMAGE_KEY_HEADER
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import (
    Failed,
    FoundFeatures,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    WriteCall,
)
from wire.telemetry import tracing
from wire.telemetry.tracing import TraceOptions, call_headers, span

PICKLE = "application/vnd.bentoml+pickle"


async def request(app: ASGIApp, method: str, path: str, **options: object) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        return await client.request(method, path, **options)  # type: ignore[arg-type]


async def echo(received: Request) -> Response:
    return PlainTextResponse(await received.body())


def guarded_status(
    method: str,
    content_type: str | None,
    path: str = "/encode",
    loaded: str | None = "a",
    **more: str,
) -> int:
    api = RunnerApi()
    api.build_key = loaded
    routes = [Route(each, echo, methods=["GET", "POST"]) for each in ("/encode", "/write")]
    headers = more if content_type is None else {"Content-Type": content_type} | more
    app = CallGuard(Starlette(routes=routes), api)
    return asyncio.run(request(app, method, path, content=b"{}", headers=headers)).status_code


@pytest.mark.parametrize(
    ("content_type", "path", "status"),
    [
        ("application/json", "/encode", 200),
        ("application/octet-stream", "/write", 200),
        ("application/octet-stream", "/encode", 415),
        (None, "/encode", 415),
        ("", "/encode", 415),
        (PICKLE, "/write", 415),
        (PICKLE.upper(), "/encode", 415),
        (f"{PICKLE}; a=b", "/encode", 415),
        (f" {PICKLE}", "/encode", 415),
        (f"application/json, {PICKLE}", "/encode", 415),
        ("text/plain", "/encode", 415),
    ],
)
def test_bodies_of_other_types_are_refused(
    content_type: str | None, path: str, status: int
) -> None:
    assert guarded_status("POST", content_type, path) == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "16000000"}, 200),
        ({"Content-Length": "16000001"}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "many"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_a_body_needs_a_length_up_to_the_maximum(headers: dict[str, str], status: int) -> None:
    assert guarded_status("POST", "application/json", **headers) == status


@pytest.mark.parametrize(
    ("loaded", "requested", "status"),
    [
        ("a", "a", 200),
        ("a", "b", 503),
        ("a", "", 503),
        (None, "a", 503),
        ("a", None, 200),  # a gateway on the same host, with the same artifacts
        (None, None, 200),
    ],
)
def test_requests_for_another_build_are_refused(
    loaded: str | None, requested: str | None, status: int
) -> None:
    headers = {} if requested is None else {BUILD_HEADER: requested}
    assert guarded_status("GET", None, loaded=loaded, **headers) == status


FAILED = Failed(code="internal", message="this worker only records")


class RecordingWorker(ModelWorker):
    """Records the adapters for which features are read."""

    def __init__(self, features: Failed | None = FAILED) -> None:
        self.image_shape_hwc = (2, 2, 3)
        self.build_key = "a"
        self._features = features
        self.adapters_read: list[str | None] = []

    async def features(self, call: RunnerCall) -> CachedFeatures | Failed:
        self.adapters_read.append(call.sequences[0].adapter if call.sequences else None)
        if self._features is None:
            raise FeaturesMissing
        return self._features


def body_of_call(*adapters: str | None) -> str:
    """Return a call with a sequence for each of `adapters`."""
    specs = [
        SequenceSpec(segments=[("caption", False)], adapter=adapter, timeout_s=1)
        for adapter in adapters
    ]
    return WriteCall(sequences=specs).model_dump_json()


def posted(worker: RecordingWorker, *adapters: str | None) -> httpx.Response:
    """Post a call with a sequence for each of `adapters`."""
    api = RunnerApi()
    api.start(worker)
    headers = {IMAGE_KEY_HEADER: "a"}
    call = request(api.app(), "POST", "/write", content=body_of_call(*adapters), headers=headers)
    return asyncio.run(call)


@pytest.mark.parametrize("adapters", [(None, None), ("tuned", "tuned"), ()], ids=str)
def test_a_call_reads_the_features_of_its_adapter(adapters: Sequence[str | None]) -> None:
    worker = RecordingWorker()
    response = posted(worker, *adapters)
    assert response.status_code == 200
    assert len(Outcomes.model_validate_json(response.content).outcomes) == len(adapters)
    assert worker.adapters_read == list(adapters[:1] or [None])


def test_a_call_with_several_adapters_is_refused() -> None:
    worker = RecordingWorker()
    response = posted(worker, "tuned", None)
    assert response.status_code == 400
    assert response.text == "the sequences name 2 adapters; all must name the same one, or all none"
    assert not worker.adapters_read


def test_a_call_without_features_answers_404() -> None:
    response = posted(RecordingWorker(features=None), None)
    assert response.status_code == 404
    assert response.text == (
        "no features are cached under this image key; repeat the call with pixels"
    )


def test_each_event_of_a_stream_is_a_line() -> None:
    api = RunnerApi()
    api.start(RecordingWorker())
    call: Message = {"type": "http.request", "body": body_of_call(None, None).encode()}
    sent: list[Message] = []

    async def stream() -> None:
        received = [call]

        async def receive() -> Message:
            return received.pop() if received else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(IMAGE_KEY_HEADER.lower().encode(), b"a")]
        scope = {"type": "http", "method": "POST", "path": "/stream", "headers": headers}
        await api.app()(scope, receive, send)

    asyncio.run(asyncio.wait_for(stream(), timeout=60))
    events = (
        FoundFeatures(outcome="miss"),
        SequenceEnd(index=0, outcome=FAILED),
        SequenceEnd(index=1, outcome=FAILED),
    )
    start, *bodies = sent
    assert start["status"] == 200
    assert start["headers"] == [(b"content-type", b"application/x-ndjson")]
    assert [message["body"] for message in bodies] == [
        *(event.model_dump_json().encode() + b"\n" for event in events),
        b"",
    ]
    assert [message["more_body"] for message in bodies] == [True, True, True, False]


def test_spans_of_a_call_belong_to_the_trace_of_the_caller() -> None:
    async def answer(_request: Request) -> Response:
        with span("work"):
            return PlainTextResponse("done", 503)

    app = TracedCalls(Starlette(routes=[Route("/encode", answer, methods=["POST"])]))

    async def call() -> None:
        with span("call"):
            headers = call_headers()
        response = await request(app, "POST", "/encode", headers=headers)
        assert (response.status_code, response.text) == (503, "done")
        await request(app, "POST", "/encode")  # a probe brings no trace

    with collecting() as collector:
        tracing.start(TraceOptions(collector.url), "part")
        try:
            asyncio.run(call())
        finally:
            tracing.stop()
    (trace_id,) = {one.trace_id for one in collector.spans if one.name == "call"}
    made = {one.name: one for one in collector.spans if one.trace_id == trace_id}
    assert set(made) == {"call", "POST /encode", "work"}
    assert made["POST /encode"].parent_id == made["call"].span_id
    assert made["work"].parent_id == made["POST /encode"].span_id
    assert made["POST /encode"].kind == "SERVER"
    assert made["POST /encode"].attributes["http.response.status_code"] == 503
    assert (made["POST /encode"].has_failed, made["work"].has_failed) == (True, False)
    assert len(collector.spans) == 4
