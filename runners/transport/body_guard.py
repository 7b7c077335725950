"""A runner reads JSON, and pixels for the gateway's calls; nothing else, and no more than a call has.

BentoML 1.4.40 would unpickle the body of whatever request declares that it is a pickle. It refuses those only at the
gateway.
"""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from runners.transport.pixels import BYTES, JSON

# The pixels of the largest model of the catalog's families, 896 x 896, are 2.4 MB.
MAX_BODY_BYTES = 16_000_000
_CALLS = ("/write", "/stream")


class BodyGuard:
    """Refuses a body of another type, of undeclared length or too long, before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, or with 411, 413 or 415."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        await ((_refusal(scope["path"], Headers(scope=scope)) if is_post else None) or self._app)(scope, receive, send)


def _refusal(path: str, headers: Headers) -> PlainTextResponse | None:
    length, allowed = headers.get("content-length", ""), (JSON, BYTES) if path in _CALLS else (JSON,)
    if headers.get("content-type") not in allowed:
        return PlainTextResponse(f"the content type must be {' or '.join(allowed)}", 415)
    if not length.isdecimal() or "transfer-encoding" in headers:
        return PlainTextResponse("Content-Length is missing", 411)
    if int(length) > MAX_BODY_BYTES:
        return PlainTextResponse(f"the body has {length} bytes; at most {MAX_BODY_BYTES} are allowed", 413)
    return None
