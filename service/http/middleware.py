"""The ASGI middleware around every HTTP route: traces, security headers, the key of metrics."""

from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.boundary import RestBoundary
from wire.telemetry.tracing import request_trace, trace_id

API_PREFIX = "/v1/"
_METRICS = "/metrics"
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    # revalidated on every load: a new version of the service brings a new page
    "Cache-Control": "no-cache",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
_NO_STORE = {"Cache-Control": "no-store"}


def with_page_policy(response: Response) -> Response:
    response.headers.update(_PAGE_HEADERS)
    return response


class Middleware:
    """Runs each request in its trace, whose id the response carries, up to the last byte.

    Adds security headers to each response, except those that it sets itself, and requires an API
    key at the path of metrics where the settings say so. Probes and pages get a trace
    id but no span. A span is named by its route: a path is unbounded.
    """

    def __init__(self, app: ASGIApp, boundary: RestBoundary) -> None:
        self._app = app
        self._boundary = boundary
        self._metrics_need_key = boundary.settings.metrics_need_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {HTTP_REQUEST_METHOD: method, URL_SCHEME: scope["scheme"]}
        is_traced = path.startswith(API_PREFIX)
        added = _HEADERS | _NO_STORE if is_traced else _HEADERS
        traced = request_trace(Headers(scope=scope), method, attributes if is_traced else None)
        with traced as span:
            request_trace_id = trace_id()

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["X-Trace-Id"] = request_trace_id
                    for name, value in added.items():
                        headers.setdefault(name, value)
                    span.set_attribute(HTTP_RESPONSE_STATUS_CODE, message["status"])
                await send(message)

            # A route's pattern ends in $, which in Python also matches before a trailing line feed.
            is_closed = self._metrics_need_key and path.rstrip("\n") == _METRICS
            refusal = self._boundary.refusal(Request(scope)) if is_closed else None
            try:
                return await (refusal or self._app)(scope, receive, send_with_headers)
            finally:
                # set by the router
                if span.is_recording() and isinstance(route := scope.get("route"), Route):
                    span.update_name(f"{method} {route.path}")
                    span.set_attribute(HTTP_ROUTE, route.path)
