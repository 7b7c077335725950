"""A runner takes JSON and nothing else.

BentoML 1.4.40 would unpickle the body of whatever request says that it is a pickle. It refuses so only at the gateway.
"""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class JsonBodies:
    """Refuses a body that does not say that it is JSON, before it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, or with 415."""
        if scope["type"] == "http" and scope["method"] == "POST":
            content_type = Headers(scope=scope).get("content-type", "")
            if content_type != "application/json":
                return await PlainTextResponse("only application/json is taken", 415)(scope, receive, send)
        return await self._app(scope, receive, send)
