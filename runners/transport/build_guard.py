"""A gateway calls only runners that have loaded the build of the model that it knows itself.

The features of one build are noise to the decoder of another, and nobody would notice: a URL may be that of another
model, and while a new build is rolled out both are there.
"""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

BUILD_HEADER = "X-Diptych-Build"  # the build key of a manifest


class LoadedBuild:
    """The build that a runner has loaded; none before that."""

    key: str | None = None


class BuildGuard:
    """Refuses calls and probes for another build with 503, on which a proxy tries the next runner."""

    def __init__(self, app: ASGIApp, loaded: LoadedBuild) -> None:
        self._app = app
        self._loaded = loaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does where no build is named, or the loaded one."""
        wanted = Headers(scope=scope).get(BUILD_HEADER) if scope["type"] == "http" else None
        is_other = wanted not in (None, self._loaded.key)
        refusal = PlainTextResponse(f"build {self._loaded.key} is loaded here", HTTPStatus.SERVICE_UNAVAILABLE)
        await (refusal if is_other else self._app)(scope, receive, send)
