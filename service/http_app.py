"""All HTTP interfaces as one ASGI app, which is mounted into BentoML's gateway service."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.admission.places import request_id_or_new
from service.batches.api import BatchesApi
from service.errors import InvalidRequest
from service.http.boundary import REST, RestBoundary, error_response
from service.http.v1 import RestApi
from service.label_studio.api import PREFIX as LABEL_STUDIO_PREFIX
from service.label_studio.api import LabelStudioApi
from service.open_inference.api import OPEN_INFERENCE, PREFIX, OpenInferenceRest
from service.openai.api import OpenAiApi
from service.web.pages import Pages
from service.x_anylabeling.api import PREFIX as X_ANYLABELING_PREFIX
from service.x_anylabeling.api import XAnyLabelingApi
from wire.telemetry.metric_files import metrics

_PREFIXES = ("/v1", PREFIX, LABEL_STUDIO_PREFIX, X_ANYLABELING_PREFIX)
_NOT_FOUND = HTTPException(404)


def rest_app(boundary: RestBoundary) -> Starlette:
    return Starlette(
        routes=[
            *RestApi(boundary).routes(),
            *OpenAiApi(boundary).routes(),
            *BatchesApi(boundary).routes(),
            *OpenInferenceRest(boundary).routes(),
            *LabelStudioApi(boundary).routes(),
            *XAnyLabelingApi(boundary).routes(),
            *Pages(boundary).routes(),
            Route("/metrics", metrics, methods=["GET"]),
            # Take precedence over BentoML's routes: their 404 has another form, and the page `/`
            # loads scripts of other hosts.
            *(Route(f"{prefix}/{{path:path}}", _no_such_path) for prefix in _PREFIXES),
        ],
        exception_handlers={HTTPException: _no_such_path},
    )


async def _no_such_path(request: Request, error: Exception = _NOT_FOUND) -> Response:
    interface = OPEN_INFERENCE if f"{request.url.path}/".startswith(f"{PREFIX}/") else REST
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = f"no route for {request.method} {request.url.path[:80]}; GET /docs lists the routes"
    request_id = request_id_or_new(request.headers.get("x-request-id"))
    return error_response(InvalidRequest(message), request_id, interface, status)
