"""The HTTP API of a runner: what is refused unread, the features that a call reads, its stream, its
span.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runners.encoder.features_cache import CachedFeatures
from runners.model_worker import ModelWorker
from runners.service import CallGuard, RunnerApi
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
from wire.telemetry.tracing import PROPAGATOR, span

PICKLE = "application/vnd.bentoml+pickle"
JSON = "application/json"


async def request(app: ASGIApp, method: str, path: str, **options: object) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        return await client.request(method, path, **options)  # type: ignore[arg-type]


async def echo(received: Request) -> Response:
    return PlainTextResponse(await received.body())


def guarded_status(
    method: str, path: str, headers: dict[str, str], loaded: str | None = "a"
) -> int:
    api = RunnerApi()
    api.build_key = loaded
    routes = [Route(route, echo, methods=["GET", "POST"]) for route in ("/encode", "/write")]
    app = CallGuard(Starlette(routes=routes), api)
    return asyncio.run(request(app, method, path, content=b"{}", headers=headers)).status_code


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/encode", {}, 200),
        ("/write", {"Content-Type": "application/octet-stream"}, 200),
        ("/encode", {"Content-Type": "application/octet-stream"}, 415),
        ("/encode", {"Content-Type": ""}, 415),
        ("/write", {"Content-Type": PICKLE}, 415),
        ("/encode", {"Content-Type": f"{PICKLE}; a=b"}, 415),
        ("/encode", {"Content-Type": f"application/json, {PICKLE}"}, 415),
        ("/encode", {"Content-Length": "16000000"}, 200),
        ("/encode", {"Content-Length": "16000001"}, 413),
        ("/encode", {"Content-Length": "-1"}, 411),
        ("/encode", {"Transfer-Encoding": "chunked"}, 411),
        ("/encode", {BUILD_HEADER: "a"}, 200),
        ("/encode", {BUILD_HEADER: "b"}, 503),
        ("/encode", {BUILD_HEADER: ""}, 503),
    ],
)
def test_bodies_and_other_builds_are_refused_unread(
    path: str, headers: dict[str, str], status: int
) -> None:
    assert guarded_status("POST", path, {"Content-Type": JSON} | headers) == status


def test_probes_of_another_build_are_refused() -> None:
    assert guarded_status("GET", "/encode", {}) == 200
    assert guarded_status("GET", "/encode", {BUILD_HEADER: "b"}) == 503
    assert guarded_status("GET", "/encode", {BUILD_HEADER: "a"}, loaded=None) == 503


@pytest.mark.parametrize(
    ("method", "kind", "is_cancelled"),
    [("POST", "http", False), ("POST", "http", True), ("GET", "http", False), ("POST", "x", False)],
)
async def test_draining_waits_for_the_last_byte_of_calls_in_flight(
    method: str, kind: str, is_cancelled: bool
) -> None:
    """A call that is cancelled is no longer in flight; a probe never is."""

    async def answer(scope: Scope, _receive: Receive, _send: Send) -> None:
        await scope["released"].wait()

    api = RunnerApi()
    headers = [(b"content-type", JSON.encode()), (b"content-length", b"0")]
    scope = {"type": kind, "method": method, "path": "/", "headers": headers}
    app: Any = CallGuard(answer, api)
    released = [asyncio.Event(), asyncio.Event()]
    calls = [asyncio.create_task(app(scope | {"released": one}, None, None)) for one in released]
    await asyncio.sleep(0)
    draining = asyncio.create_task(api.drain())
    await asyncio.sleep(0)
    if is_cancelled:
        calls[0].cancel()
    released[0].set()
    await asyncio.sleep(0.01)
    assert api.is_draining
    assert draining.done() == ((method, kind) != ("POST", "http"))
    released[1].set()
    async with asyncio.timeout(5):
        await draining
    await asyncio.wait(calls)


FAILED = Failed(code="internal", message="this worker only records")


class RecordingWorker(ModelWorker):
    """Records the calls whose features are read."""

    def __init__(self, features: Failed | None = FAILED) -> None:
        self.image_shape_hwc = (2, 2, 3)
        self.build_key = "a"
        self._features = features
        self.calls: list[RunnerCall] = []

    async def features(self, call: RunnerCall) -> CachedFeatures | Failed:
        self.calls.append(call)
        if self._features is None:
            raise FeaturesMissing
        return self._features


def body_of_call(*adapters: str | None) -> bytes:
    """Return a call with a sequence for each of `adapters`."""
    specs: list[SequenceSpec] = []
    for adapter in adapters:
        specs.append(SequenceSpec(segments=[("caption", False)], adapter=adapter, timeout_s=1))
    return WriteCall(sequences=specs).model_dump_json().encode()


def api_of(worker: RecordingWorker) -> Starlette:
    api = RunnerApi()
    api.start(worker)
    return api.app()


def posted(worker: RecordingWorker, body: bytes, key: str = "a") -> httpx.Response:
    headers = {IMAGE_KEY_HEADER: key}
    return asyncio.run(request(api_of(worker), "POST", "/write", content=body, headers=headers))


@pytest.mark.parametrize("adapters", [(None, None), ("tuned", "tuned"), ()], ids=str)
def test_a_call_reads_the_features_of_its_image(adapters: Sequence[str | None]) -> None:
    worker = RecordingWorker()
    response = posted(worker, body_of_call(*adapters))
    assert response.status_code == 200
    assert Outcomes.model_validate_json(response.content).outcomes == [FAILED] * len(adapters)
    (call,) = worker.calls
    assert (call.image_key, [spec.adapter for spec in call.sequences]) == ("a", list(adapters))


@pytest.mark.parametrize(
    ("body", "key", "features", "status", "message"),
    [
        (b"{}", "a", FAILED, 400, "1 validation error"),
        (body_of_call("tuned", None), "a", FAILED, 400, "the sequences must name the same adapter"),
        (body_of_call(None), "", FAILED, 400, "X-Diptych-Image-Key is missing"),
        (body_of_call(None), "a", None, 404, "repeat the call with pixels"),
    ],
    ids=range(4),
)
def test_calls_that_cannot_be_answered_are_refused(
    body: bytes, key: str, features: Failed | None, status: int, message: str
) -> None:
    response = posted(RecordingWorker(features), body, key)
    assert response.status_code == status
    assert response.text.startswith(message)


@pytest.mark.parametrize("features", [FAILED, None], ids=["a failed image", "no features"])
def test_each_event_of_a_stream_is_a_line(features: Failed | None) -> None:
    sent: list[Message] = []

    async def stream() -> None:
        received: list[Message] = [{"type": "http.request", "body": body_of_call(None, None)}]

        async def receive() -> Message:
            return received.pop() if received else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(IMAGE_KEY_HEADER.lower().encode(), b"a")]
        scope = {"type": "http", "method": "POST", "path": "/stream", "headers": headers}
        await api_of(RecordingWorker(features))(scope, receive, send)

    asyncio.run(asyncio.wait_for(stream(), timeout=60))
    start, *bodies = sent
    if features is None:
        assert start["status"] == 404
        return
    events = [FoundFeatures(outcome="miss")]
    ends = [SequenceEnd(index=index, outcome=FAILED) for index in range(2)]
    lines = [event.model_dump_json().encode() + b"\n" for event in (*events, *ends)]
    assert (start["status"], start["headers"]) == (
        200,
        [(b"content-type", b"application/x-ndjson")],
    )
    assert [message["body"] for message in bodies] == [*lines, b""]
    assert [message["more_body"] for message in bodies] == [True, True, True, False]


async def test_a_caller_that_has_gone_is_no_error() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/write", "headers": []}
    await api_of(RecordingWorker())(scope, receive, send)
    assert sent[0]["status"] == 499


def test_spans_of_a_call_belong_to_the_trace_of_the_caller() -> None:
    async def answer(_request: Request) -> Response:
        with span("work"):
            return PlainTextResponse("done", 503)

    app = CallGuard(Starlette(routes=[Route("/encode", answer, methods=["GET"])]), RunnerApi())

    async def call() -> None:
        with span("call"):
            headers: dict[str, str] = {}
            PROPAGATOR.inject(headers)
        response = await request(app, "GET", "/encode", headers=headers)
        assert (response.status_code, response.text) == (503, "done")
        await request(app, "GET", "/encode")  # a probe brings no trace

    with collecting() as collector:
        tracing.start(collector.url, "part")
        try:
            asyncio.run(call())
        finally:
            tracing.stop()
    assert len(collector.spans) == 4
    (trace_id,) = {one.trace_id for one in collector.spans if one.name == "call"}
    built = {one.name: one for one in collector.spans if one.trace_id == trace_id}
    assert set(built) == {"call", "GET /encode", "work"}
    server = built["GET /encode"]
    assert (server.parent_id, built["work"].parent_id) == (built["call"].span_id, server.span_id)
    assert (server.kind, server.attributes["http.response.status_code"]) == ("SERVER", 503)
    assert (server.has_failed, built["work"].has_failed) == (True, False)
