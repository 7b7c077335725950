"""A guard for builds: a runner answers only calls for the build of the model that it has loaded.

The features of one build are noise to the decoder of another, without any error. Builds can differ if a URL is that of
another model, and during the rollout of a new build.
"""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

BUILD_HEADER = "X-Diptych-Build"  # the build key of a manifest


class LoadedBuild:
    """The key of the build that a runner has loaded; None until then."""

    key: str | None = None


class BuildGuard:
    """Refuses calls and probes for another build with 503, at which a proxy tries the next runner."""

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
