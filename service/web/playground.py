"""The page at /playground: static files under a strict policy. What is served, the page asks like any client.

GET /playground  GET /playground/{file}
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from service.http.browser_policy import with_policy

_FOLDER = Path(__file__).with_name("playground")


class Playground:
    """The page and its files. They need no key, and are there before the models are."""

    def __init__(self) -> None:
        self._files = StaticFiles(directory=_FOLDER)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/playground", self.page, methods=["GET"]),
            Route("/playground/{file:path}", self.file, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        """Return the page."""
        return await self._answer(request, "index.html")

    async def file(self, request: Request) -> Response:
        """Return a file of the page; raise `HTTPException` (404) where there is none."""
        return await self._answer(request, request.path_params["file"] or "index.html")

    async def _answer(self, request: Request, file: str) -> Response:
        """Answer with the file, or with 304 where the browser's copy is the same."""
        return with_policy(await self._files.get_response(file, request.scope))
