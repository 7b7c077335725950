"""The trace of every HTTP request, outermost before all routes: its id in the response, and its span.

Probes and pages have an id and no span. A span is named by the route, as a path may hold anything.
"""

from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.trace import Span
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runners.telemetry.tracing import Attributes, trace_id
from service.http.guards import API_PREFIXES, HEALTH
from service.telemetry.tracing import request_trace

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


class TracedRequests:
    """Gives each request its trace, to the last byte of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, with the trace's id."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with request_trace(Headers(scope=scope), method, _attributes(scope, method)) as request:
            told_id = trace_id()

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["X-Trace-Id"] = told_id
                    request.set_attribute(HTTP_RESPONSE_STATUS_CODE, message["status"])
                await send(message)

            try:
                return await self._app(scope, receive, send_with_id)
            finally:
                _name(request, scope, method)


def _attributes(scope: Scope, method: str) -> Attributes | None:
    """Return what is known of a request before it is read; None: it gets no span."""
    if scope["path"] in HEALTH or not scope["path"].startswith(API_PREFIXES):
        return None
    return {HTTP_REQUEST_METHOD: method, URL_SCHEME: scope["scheme"]}


def _name(request: Span, scope: Scope, method: str) -> None:
    """Name a request by its route, which is known once it was found."""
    if request.is_recording() and isinstance(route := scope.get("route"), Route):
        request.update_name(f"{method} {route.path}")
        request.set_attribute(HTTP_ROUTE, route.path)
