"""The server span of a call from the gateway. Knows ASGI and no runner."""

from http import HTTPStatus

from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wire.telemetry.tracing import are_made, caller_context, note_error, span


class TracedCalls:
    """Makes a server span in the caller's trace for each request with a traceparent header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or not are_made()
            or "traceparent" not in (headers := Headers(scope=scope))
        ):
            return await self._app(scope, receive, send)
        attributes = {HTTP_REQUEST_METHOD: scope["method"], HTTP_ROUTE: scope["path"]}
        name = f"{scope['method']} {scope['path']}"
        with span(name, attributes, SpanKind.SERVER, caller_context(headers)) as call:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    call.set_attribute(HTTP_RESPONSE_STATUS_CODE, message["status"])
                    if message["status"] >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        note_error(call, str(message["status"]))
                await send(message)

            return await self._app(scope, receive, send_noted)
