"""Guards of a runner: foreign and long bodies and calls for another build are refused unread.

A runner reads JSON, and pixels of the gateway's calls. BentoML 1.4.40 unpickles any request body
whose content type is that of a pickle; only its entry service, the gateway, refuses these. The
features of one build are noise to the decoder of another, without any error; builds can differ if a
URL is that of another model, and while a new build is rolled out.
"""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from wire.pixels import BUILD_HEADER, BYTES, JSON

# The pixels of the largest input of both families, 896 x 896, are 2.4 MB.
MAX_BODY_BYTES = 16_000_000
_CALLS = ("/write", "/stream")


class BodyGuard:
    """Refuses unread bodies: another type (415), without a length (411), too long (413)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = Headers(scope=scope)
            length = headers.get("content-length", "")
            content_type = headers.get("content-type", "")
            allowed = (JSON, BYTES) if scope["path"] in _CALLS else (JSON,)
            if content_type not in allowed:
                types = " or ".join(allowed)
                message = f"Content-Type is {content_type[:80]!r}; it must be {types}"
                app = PlainTextResponse(message, 415)
            elif not length.isdecimal() or "transfer-encoding" in headers:
                message = "Content-Length is missing or malformed; it must be the bytes of the body"
                app = PlainTextResponse(message, 411)
            elif int(length) > MAX_BODY_BYTES:
                message = f"the body has {length} bytes; at most {MAX_BODY_BYTES} are allowed"
                app = PlainTextResponse(message, 413)
        await app(scope, receive, send)


class LoadedBuild:
    """The key of the build that a runner has loaded, or None before."""

    key: str | None = None


class BuildGuard:
    """Refuses calls and probes for another build by 503: a proxy then tries the next runner."""

    def __init__(self, app: ASGIApp, loaded: LoadedBuild) -> None:
        self._app = app
        self._loaded = loaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = Headers(scope=scope).get(BUILD_HEADER) if scope["type"] == "http" else None
        if wanted is None or wanted == self._loaded.key:
            await self._app(scope, receive, send)
            return
        message = f"{BUILD_HEADER} is {wanted[:80]!r}; this runner has loaded {self._loaded.key!r}"
        await PlainTextResponse(message, HTTPStatus.SERVICE_UNAVAILABLE)(scope, receive, send)
