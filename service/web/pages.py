"""What a browser shows: the contract as a page and as a document. They need no key.

GET /openapi.json  GET /docs  GET /docs/start.js
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from service.http.boundary import RestBoundary
from service.http.browser_policy import with_policy
from service.inference.core import RequestContext
from service.web.openapi import openapi_document

_DOCS = Path(__file__).with_name("docs")


class Pages:
    """The endpoints for a browser."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        """Return the routes."""
        endpoint = self._boundary.endpoint
        return [
            Route("/openapi.json", endpoint(self.openapi), methods=["GET"]),
            Route("/docs", endpoint(self.docs), methods=["GET"]),
            Route("/docs/start.js", endpoint(self.docs_script), methods=["GET"]),
        ]

    async def openapi(self, _request: Request, _context: RequestContext) -> Response:
        """Return the whole contract."""
        return JSONResponse(openapi_document(self._boundary.core().models))

    async def docs(self, _request: Request, _context: RequestContext) -> Response:
        """Show the contract to a person."""
        return with_policy(FileResponse(_DOCS / "index.html"))

    async def docs_script(self, _request: Request, _context: RequestContext) -> Response:
        """Return the script that starts Swagger UI: the policy allows none within the page."""
        return with_policy(FileResponse(_DOCS / "start.js"))
