"""What stands before every HTTP route of the gateway, BentoML's own among them: headers, and keys for some."""

from collections.abc import Collection

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.boundary import RestBoundary
from service.settings import Settings

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
_NO_STORE = {"Cache-Control": "no-store"}
API_PREFIXES = ("/v1/", "/v2/")
_METRICS = "/metrics"
HEALTH = ("/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")


class SecurityHeaders:
    """Adds the headers that an answer does not bring itself, as a page with a policy of its own does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, with more headers."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        added = _HEADERS | _NO_STORE if scope["path"].startswith(API_PREFIXES) else _HEADERS

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in added.items():
                    headers.setdefault(name, value)
            await send(message)

        return await self._app(scope, receive, send_with_headers)


class KeyForPaths:
    """Asks for an API key at some paths."""

    def __init__(self, app: ASGIApp, boundary: RestBoundary, paths: Collection[str]) -> None:
        self._app = app
        self._boundary = boundary
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, or with 401."""
        # A route's pattern ends in $, before which Python allows a line feed.
        is_closed = scope["type"] == "http" and scope["path"].rstrip("\n") in self._paths
        refusal = self._boundary.refusal(Request(scope)) if is_closed else None
        await (refusal or self._app)(scope, receive, send)


def closed_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths of health and metrics that need a key."""
    metrics = (_METRICS,) if settings.metrics_need_key else ()
    return metrics + (HEALTH if settings.health_needs_key else ())
