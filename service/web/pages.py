"""Pages for a browser, without a key: the playground, and the HTTP contract.

The playground is served before the models are ready; the page calls the API as any client does.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from service.admission.places import RequestContext
from service.admission.threads import PARSING
from service.http.boundary import Body, RestBoundary
from service.http.middleware import with_page_policy
from service.web.openapi import openapi_document

_FOLDER = Path(__file__).parent


class Pages:
    """The routes of the pages."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary
        self._described: tuple[tuple[str, frozenset[str]], ...] = ()
        self._document = b""
        self._playground = StaticFiles(directory=_FOLDER / "playground")

    def routes(self) -> list[Route]:
        route = self._boundary.route
        return [
            route("GET", "/openapi.json", self.openapi, is_public=True),
            route("GET", "/docs", self.docs, is_public=True),
            route("GET", "/docs/start.js", self.docs, is_public=True),
            Route("/", self.home, methods=["GET"]),
            Route("/playground", self.playground, methods=["GET"]),
            Route("/playground/{file:path}", self.playground, methods=["GET"]),
        ]

    async def home(self, _request: Request) -> Response:
        return RedirectResponse("playground")

    async def openapi(self, _request: Request, _context: RequestContext) -> Body:
        models = self._boundary.core().models
        described = tuple((model.id, frozenset(model.entry.task_ids)) for model in models)
        if described != self._described:  # it takes 70 ms, and callers need no key
            self._document = bytes(JSONResponse(await PARSING.run(openapi_document, models)).body)
            self._described = described
        return Response(self._document, media_type="application/json")

    async def docs(self, request: Request, _context: RequestContext) -> Body:
        # the script that starts Swagger UI: the page's policy forbids inline scripts
        file = "start.js" if request.url.path.endswith(".js") else "index.html"
        return with_page_policy(FileResponse(_FOLDER / "docs" / file))

    async def playground(self, request: Request) -> Response:
        """Return a file of the page, or 304 if it is current; raise `HTTPException` (404)."""
        file = request.path_params.get("file") or "index.html"
        return with_page_policy(await self._playground.get_response(file, request.scope))
