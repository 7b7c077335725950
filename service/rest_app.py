"""All HTTP interfaces as one ASGI app, which is mounted into BentoML's gateway service."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.openai_api import OpenAiApi
from service.pages import Pages
from service.rest import RestApi
from service.rest_boundary import RestBoundary, no_such_path


def rest_app(boundary: RestBoundary) -> Starlette:
    """Return the app around `boundary`, which may be started later."""
    return Starlette(
        routes=[
            *RestApi(boundary).routes(),
            *OpenAiApi(boundary).routes(),
            *Pages(boundary).routes(),
            Route("/v1/{path:path}", _unknown),  # before BentoML's own routes answer in their form
        ],
        exception_handlers={HTTPException: no_such_path},
    )


async def _unknown(_request: Request) -> Response:
    raise HTTPException(404)
