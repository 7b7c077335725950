"""What a browser shows: the contract as a page and as a document. They need no key.

GET /openapi.json  GET /docs
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.core import RequestContext
from service.openapi import openapi_document
from service.rest_boundary import RestBoundary

_DOCS_PAGE = Path(__file__).with_name("docs.html")


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
        ]

    async def openapi(self, _request: Request, _context: RequestContext) -> Response:
        """Return the whole contract."""
        return JSONResponse(openapi_document(self._boundary.core().models))

    async def docs(self, _request: Request, _context: RequestContext) -> Response:
        """Show the contract to a person."""
        return HTMLResponse(_DOCS_PAGE.read_text(encoding="utf-8"))
