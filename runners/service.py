"""The BentoML service of one model: vision encoder, features cache and decoder in one process.

    POST /write     WriteCall -> Outcomes
    POST /stream    WriteCall -> a line of JSON for each WritingEvent
    POST /encode    one image, batched by BentoML's adaptive batcher; called within the process
    GET  /adapters  AdapterStates
    GET  /metrics   of all processes of this host (wire/telemetry/metric_files.py)
    GET  /livez, /readyz

The gateway's routes are a Starlette app: a BentoML API costs 0.4 ms more per call. When the caller
disconnects, its slots are freed within one decode step. Foreign and long bodies are refused unread:
BentoML 1.4.40 unpickles any body whose content type is a pickle's. So are calls for another build,
whose features are noise to this decoder without any error; builds differ while a new one is rolled
out.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import bentoml
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runners.bentoml_internals import batcher, dispatch_at_once
from runners.options import RunnerOptions, encoder_batch_size, runner_name
from runners.watchdog import bounded_start, end_process_when_stuck
from wire.artifacts.devices import select_gpu
from wire.disconnection import while_connected
from wire.drain import drain_before_stop
from wire.host import return_freed_memory_regularly
from wire.pixels import (
    BUILD_HEADER,
    BYTES,
    IMAGE_KEY_HEADER,
    JSON,
    MESSAGE_BYTES_HEADER,
    read_call,
)
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import EncodedImage, ImageToEncode
from wire.telemetry import tracing
from wire.telemetry.metric_files import metrics
from wire.telemetry.runner_metrics import START_TIME_SECONDS
from wire.telemetry.tracing import are_made, note_error, request_trace

if TYPE_CHECKING:
    from runners.model_worker import ModelWorker

# The pixels of the largest input of both families, 896 x 896, are 2.4 MB.
MAX_BODY_BYTES = 16_000_000
# Far above the slowest batch: BentoML drops images that it expects to take longer.
_MAX_LATENCY_MS = 3_600_000
_CALLS = ("/write", "/stream")
NO_ACCESS_LOG = {"access": {"enabled": False}}  # the gateway logs each request once
# BentoML's tracing and metrics cost time in every call and duplicate our own.
NO_TRACING = {"excluded_urls": "."}


class CallGuard:
    """Refuses unread bodies: another type (415), without a length (411), too long (413); and calls
    and probes for another build by 503: a proxy then tries the next runner.

    Counts the calls in flight, up to the last byte of their responses. Makes a server span in the
    caller's trace for each request with a traceparent header.
    """

    def __init__(self, app: ASGIApp, api: "RunnerApi") -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers) or self._app
        if "traceparent" in headers and are_made():
            answer = partial(self._traced, answer, headers)
        if scope["method"] != "POST":
            return await answer(scope, receive, send)
        self._api.num_calls += 1
        try:
            return await answer(scope, receive, send)
        finally:
            self._api.num_calls -= 1
            self._api.call_ended.set()

    async def _traced(
        self, answer: ASGIApp, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        attributes = {HTTP_REQUEST_METHOD: scope["method"], HTTP_ROUTE: scope["path"]}
        name = f"{scope['method']} {scope['path']}"
        with request_trace(headers, name, attributes) as call:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.set_attribute(HTTP_RESPONSE_STATUS_CODE, message["status"])
                    if message["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        note_error(call, str(message["status"]))
                await send(message)

            await answer(scope, receive, send_noted)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        build_key = headers.get(BUILD_HEADER)
        if build_key is not None and build_key != self._api.build_key:
            message = f"this runner has loaded {self._api.build_key!r}"
            return PlainTextResponse(message, HTTPStatus.SERVICE_UNAVAILABLE)
        if scope["method"] != "POST":
            return None
        length = headers.get("content-length", "")
        content_type = headers.get("content-type", "")
        allowed = (JSON, BYTES) if scope["path"] in _CALLS else (JSON,)
        if content_type not in allowed:
            return PlainTextResponse(f"Content-Type must be {' or '.join(allowed)}", 415)
        if not length.isdecimal() or "transfer-encoding" in headers:
            return PlainTextResponse("Content-Length must be the bytes of the body", 411)
        if int(length) > MAX_BODY_BYTES:
            message = f"the body has {length} bytes; at most {MAX_BODY_BYTES} are allowed"
            return PlainTextResponse(message, 413)
        return None


_CLIENT_CLOSED_REQUEST = 499  # nginx's code, for the log: the client has disconnected


async def _features_missing(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("repeat the call with pixels", HTTPStatus.NOT_FOUND)


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


class RunnerApi:
    """The routes of one model; call `start` before the process listens."""

    build_key: str | None = None  # of the loaded build

    def __init__(self) -> None:
        self.is_draining = False
        self.num_calls = 0
        self.call_ended = asyncio.Event()

    def start(self, worker: "ModelWorker") -> None:
        self._worker = worker
        self.build_key = worker.build_key

    async def drain(self) -> None:
        """Wait until no call is in flight."""
        self.is_draining = True
        while self.num_calls:
            self.call_ended.clear()
            await self.call_ended.wait()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/write", self._write, methods=["POST"]),
                Route("/stream", self._stream, methods=["POST"]),
                Route("/adapters", self._adapters),
                Route("/metrics", metrics),
            ],
            exception_handlers={
                FeaturesMissing: _features_missing,
                ClientDisconnect: _disconnected,
            },
        )

    async def _call(self, request: Request) -> RunnerCall:
        body = await request.body()
        headers = request.headers
        message_bytes = headers.get(MESSAGE_BYTES_HEADER)
        try:
            write, pixels = read_call(body, message_bytes, self._worker.image_shape_hwc)
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from error
        if not (image_key := headers.get(IMAGE_KEY_HEADER)):
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"{IMAGE_KEY_HEADER} is missing")
        adapters = {spec.adapter for spec in write.sequences}
        if len(adapters) > 1:  # the features of an adapter may be other ones
            raise HTTPException(HTTPStatus.BAD_REQUEST, "the sequences must name the same adapter")
        return RunnerCall(image_key, write.sequences, pixels)

    async def _adapters(self, _request: Request) -> Response:
        states = await self._worker.adapters()
        return Response(states.model_dump_json(), media_type=JSON)

    async def _write(self, request: Request) -> Response:
        call = await self._call(request)
        outcomes = await while_connected(request.receive, self._worker.write(call))
        return Response(outcomes.model_dump_json(), media_type=JSON)

    async def _stream(self, request: Request) -> Response:
        events = self._worker.stream(await self._call(request))
        first = await while_connected(request.receive, anext(events))

        async def lines() -> AsyncGenerator[bytes, None]:
            async with aclosing(events):
                yield first.model_dump_json().encode() + b"\n"
                async for event in events:
                    yield event.model_dump_json().encode() + b"\n"

        # cancelled when the caller disconnects, which closes the generators
        return StreamingResponse(lines(), media_type="application/x-ndjson")


def load_worker(
    model_id: str, options: RunnerOptions, batched: Callable[[int], Awaitable[EncodedImage]]
) -> "ModelWorker":
    """Verify and load the artifacts and warm up; end the process when this or a step is stuck."""
    START_TIME_SECONDS.labels(model_id, "runner").set_to_current_time()
    tracing.start(options.otlp_endpoint, runner_name(model_id))
    with bounded_start(options.start_timeout_s):
        if options.gpu is not None:
            select_gpu(options.gpu)
        # A late import: the gateway imports this module, and must load neither torch nor ONNX
        # Runtime.
        from runners.model_worker import ModelWorker

        worker = ModelWorker(model_id, options, batched)
        worker.load()
    return_freed_memory_regularly()
    end_process_when_stuck(worker.watchdogs, options.limits.stuck_after_s)
    return worker


def make_runner_service(model_id: str, options: RunnerOptions) -> Any:
    dispatch_at_once()
    api = RunnerApi()

    class Runner:
        """Turns images into features and features into answers."""

        @bentoml.on_startup
        async def load(self) -> None:
            self._worker = load_worker(model_id, options, self._batched)
            api.start(self._worker)
            drain_before_stop(api.drain)

        @bentoml.on_shutdown
        def stop(self) -> None:
            self._worker.stop()
            tracing.stop()

        async def __is_ready__(self) -> bool:
            return await self._worker.is_ready() and not api.is_draining

        @bentoml.api(
            batchable=True,
            max_batch_size=encoder_batch_size(options),
            max_latency_ms=_MAX_LATENCY_MS,
        )
        def encode(self, images: list[ImageToEncode]) -> list[EncodedImage]:
            """Encode the images of pending calls; each succeeds or fails on its own."""
            return self._worker.encode(images)

        async def _batched(self, place: int) -> EncodedImage:
            (encoded,) = await batcher(self, "encode")([ImageToEncode(place=place)])
            return cast(EncodedImage, encoded)

    service = bentoml.service(
        name=runner_name(model_id),
        traffic={"timeout": options.timeout_s},
        logging=NO_ACCESS_LOG,
        metrics={"enabled": False},  # RunnerApi has its own /metrics
        tracing=NO_TRACING,
    )(Runner)
    service.add_asgi_middleware(CallGuard, api=api)
    service.mount_asgi_app(api.app())
    return service
