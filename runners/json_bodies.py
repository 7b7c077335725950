"""A runner takes JSON and nothing else, and no more of it than a message has.

BentoML 1.4.40 would unpickle the body of whatever request says that it is a pickle. It refuses so only at the gateway.
"""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# The features of the largest model of the catalog's families, 4,096 image tokens of width 2,304, are 50 MB in base64.
MAX_BODY_BYTES = 64_000_000


class JsonBodies:
    """Refuses a body that does not say that it is JSON, or how long it is, or is too long: before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, or with 411, 413 or 415."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await ((_refusal(Headers(scope=scope)) if is_post else None) or self._app)(scope, receive, send)


def _refusal(headers: Headers) -> PlainTextResponse | None:
    length = headers.get("content-length", "")
    if headers.get("content-type") != "application/json":
        return PlainTextResponse("only application/json is taken", 415)
    if not length.isdecimal() or "transfer-encoding" in headers:
        return PlainTextResponse("the length of the body must be told", 411)
    if int(length) > MAX_BODY_BYTES:
        return PlainTextResponse(f"at most {MAX_BODY_BYTES} bytes are taken", 413)
    return None
