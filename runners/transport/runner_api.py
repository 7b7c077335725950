"""The routes that the gateway calls, as a Starlette app: a BentoML API costs 0.4 ms more per call.

    POST /write     WriteCall -> Outcomes
    POST /stream    WriteCall -> a line of JSON for each WritingEvent
    GET  /adapters  AdapterStates
    GET  /metrics   of all processes of this host (wire/telemetry/metric_files.py)

A call without pixels answers 404 if no features are cached under X-Diptych-Image-Key. When the
caller disconnects, its slots are freed within one decode step.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from wire.disconnection import while_connected
from wire.pixels import (
    IMAGE_KEY_HEADER,
    JSON,
    MESSAGE_BYTES_HEADER,
    BadCall,
    ReceivedCall,
    read_call,
)
from wire.runner_messages import Failed, SequenceSpec, WritingEvent
from wire.telemetry.metric_files import metrics

if TYPE_CHECKING:
    from runners.encoder.features_cache import CachedFeatures
    from runners.model_worker import ModelWorker

    Features = CachedFeatures | Failed
    _Answer = Callable[[Features, Sequence[SequenceSpec]], Awaitable[Response]]

_CLIENT_CLOSED_REQUEST = 499  # nginx's code, for the log: the client has disconnected


class RunnerApi:
    """The routes of one model; `start` must be called before the process listens."""

    def start(self, worker: "ModelWorker") -> None:
        """Set the worker that answers the calls."""
        self._worker = worker

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/write", self._endpoint(self._write), methods=["POST"]),
                Route("/stream", self._endpoint(self._stream), methods=["POST"]),
                Route("/adapters", self._adapters),
                Route("/metrics", metrics),
            ]
        )

    def _endpoint(self, answer: "_Answer") -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            message_bytes = request.headers.get(MESSAGE_BYTES_HEADER)
            try:
                body = await request.body()
                received = read_call(body, message_bytes, self._worker.image_shape_hwc)
                answered = self._answer(request, received, answer)
                return await while_connected(request.receive, answered)
            except BadCall as error:
                return PlainTextResponse(str(error), HTTPStatus.BAD_REQUEST)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_CLOSED_REQUEST)

        return endpoint

    async def _adapters(self, _request: Request) -> Response:
        return Response(self._worker.adapters().model_dump_json(), media_type=JSON)

    async def _answer(
        self, request: Request, received: ReceivedCall, answer: "_Answer"
    ) -> Response:
        if not (image_key := request.headers.get(IMAGE_KEY_HEADER)):
            raise BadCall(
                f"the header {IMAGE_KEY_HEADER} is missing; it must be the image key, hexadecimal"
            )
        adapters = {spec.adapter for spec in received.call.sequences} or {None}
        if len(adapters) > 1:  # the features of an adapter may be other ones
            allowed = "all must name the same one, or all none"
            raise BadCall(f"the sequences name {len(adapters)} adapters; {allowed}")
        features = await self._worker.features(image_key, received.pixels, *adapters)
        if features is None:
            message = "no features are cached under this image key; repeat the call with pixels"
            return PlainTextResponse(message, HTTPStatus.NOT_FOUND)
        return await answer(features, received.call.sequences)

    async def _write(self, features: "Features", specs: Sequence[SequenceSpec]) -> Response:
        outcomes = await self._worker.write(features, specs)
        return Response(outcomes.model_dump_json(), media_type=JSON)

    async def _stream(self, features: "Features", specs: Sequence[SequenceSpec]) -> Response:
        return _EventLines(self._worker.stream(features, specs))


class _EventLines(Response):
    """Streams one line of JSON per event; closes the generator when the client disconnects."""

    media_type = "application/x-ndjson"

    def __init__(self, events: AsyncGenerator[WritingEvent, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        async def send_events() -> None:
            async with aclosing(self._events) as events:
                async for event in events:
                    line = event.model_dump_json().encode() + b"\n"
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await send(
            {"type": "http.response.start", "status": HTTPStatus.OK, "headers": self.raw_headers}
        )
        with suppress(ClientDisconnect):
            await while_connected(receive, send_events())
