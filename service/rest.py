"""REST: routes, statuses and headers around the core. Mounted into BentoML's gateway service as an ASGI app.

POST /v1/predict  POST /v1/compare  GET /v1/models  GET /v1/tasks  GET /openapi.json  GET /docs
"""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from runners.disconnection import while_connected
from service import request_ids
from service.api_keys import ApiKeys
from service.bodies import read_body
from service.core import Core, RequestContext
from service.errors import ErrorCode, InternalError, InvalidRequest, NotReady, Overloaded, ServiceError
from service.listings import models_json, tasks_json
from service.openapi import openapi_document
from service.recording import record_error, record_gone_client
from service.responses import answer_json, error_detail, image_json
from service.settings import Settings
from service.wire import ComparisonJson, ErrorJson, ModelErrorJson

logger = logging.getLogger(__name__)

STATUSES: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "image_too_large": 413,
    "payload_too_large": 413,
    "unsupported_image": 415,
    "unsupported_task": 422,
    "overloaded": 429,
    "internal": 500,
    "not_ready": 503,
    "deadline_exceeded": 504,
}
_CLIENT_CLOSED_REQUEST = 499  # nginx's code; nobody is left to read it
_DOCS_PAGE = Path(__file__).with_name("docs.html")
_API = "rest"

Endpoint = Callable[["RestApi", Request, RequestContext], Awaitable[Response]]


def _endpoint(function: Endpoint) -> "Callable[[RestApi, Request], Awaitable[Response]]":
    """Give an endpoint its context, and turn whatever it raises into the error body of the contract."""

    @wraps(function)
    async def answer(api: "RestApi", request: Request) -> Response:
        request_id = _id_of(request)
        try:
            context = RequestContext(request_id, _API, time.monotonic() + api.timeout_s(request))
            response = await function(api, request, context)
        except ClientDisconnect:
            record_gone_client(_API, request_id)
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except ServiceError as error:
            response = _error_response(error, request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            response = _error_response(InternalError("the service failed; its log tells more"), request_id)
        response.headers["X-Request-Id"] = request_id
        return response

    return answer


class RestApi:
    """The REST interface of a core that `start` hands over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._core: Core | None = None
        self._api_keys = ApiKeys(None)

    def start(self, core: Core, api_keys: ApiKeys) -> None:
        """Begin to answer from `core`; before, every request is answered with not_ready."""
        self._core = core
        self._api_keys = api_keys

    def app(self) -> Starlette:
        """Return the ASGI app."""
        return Starlette(
            routes=[
                Route("/v1/predict", self.predict, methods=["POST"]),
                Route("/v1/compare", self.compare, methods=["POST"]),
                Route("/v1/models", self.list_models, methods=["GET"]),
                Route("/v1/tasks", self.list_tasks, methods=["GET"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
                Route("/docs", self.docs, methods=["GET"]),
                Route("/v1/{path:path}", _no_such_path),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def timeout_s(self, request: Request) -> float:
        """Return the seconds that the request may take: its X-Deadline-Ms, at most the service's own."""
        header = request.headers.get("x-deadline-ms")
        if header is None:
            return self._settings.request_timeout_s
        if not (header.isascii() and header.isdigit() and len(header) <= 15) or int(header) == 0:
            raise InvalidRequest(f"X-Deadline-Ms must be a whole number of milliseconds above 0, not {header[:40]!r}")
        return min(int(header) / 1000, self._settings.request_timeout_s)

    @_endpoint
    async def predict(self, request: Request, context: RequestContext) -> Response:
        """Answer with one model."""
        core = self._authorized(request)
        body = await read_body(request, self._settings.max_body_bytes)
        answer = await while_connected(request.receive, core.predict(body.image, body.fields, context))
        return _json(answer_json(answer, context.request_id))

    @_endpoint
    async def compare(self, request: Request, context: RequestContext) -> Response:
        """Answer with several models at the same time."""
        core = self._authorized(request)
        body = await read_body(request, self._settings.max_body_bytes)
        comparison = await while_connected(request.receive, core.compare(body.image, body.fields, context))
        answers = [
            ModelErrorJson(model=model.id, error=error_detail(outcome, context.request_id))
            if isinstance(outcome, ServiceError)
            else answer_json(outcome, context.request_id)
            for model, outcome in comparison.answers
        ]
        image = image_json(comparison.image_size_wh)
        return _json(
            ComparisonJson(id=context.request_id, task=comparison.request.task.id, image=image, answers=answers)
        )

    @_endpoint
    async def list_models(self, request: Request, _context: RequestContext) -> Response:
        """List the served models in the format of OpenAI's API."""
        return JSONResponse(models_json(self._authorized(request).models))

    @_endpoint
    async def list_tasks(self, request: Request, _context: RequestContext) -> Response:
        """List every task with the schema of its parameters and the models that offer it."""
        return JSONResponse(tasks_json(self._authorized(request).models))

    @_endpoint
    async def openapi(self, _request: Request, _context: RequestContext) -> Response:
        """Return the whole contract."""
        return JSONResponse(openapi_document(self._started().models))

    @_endpoint
    async def docs(self, _request: Request, _context: RequestContext) -> Response:
        """Show the contract to a person."""
        return HTMLResponse(_DOCS_PAGE.read_text(encoding="utf-8"))

    def _authorized(self, request: Request) -> Core:
        self._api_keys.check(request.headers.get("authorization"))
        return self._started()

    def _started(self) -> Core:
        if self._core is None:
            raise NotReady("the service is starting; try again in a few seconds")
        return self._core


def _id_of(request: Request) -> str:
    return request_ids.request_id(request.headers.get("x-request-id"))


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")


async def _no_such_path(_request: Request) -> Response:
    raise HTTPException(404)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or a wrong method in the form of every other error."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = f"{request.method} {request.url.path[:80]} does not exist; GET /docs shows what does"
    return _error_response(InvalidRequest(message), _id_of(request), status)


def _error_response(error: ServiceError, request_id: str, status: int | None = None) -> Response:
    if not error.is_recorded:
        record_error(error, _API, request_id)
    body = ErrorJson(error=error_detail(error, request_id))
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else {}
    if error.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body.model_dump_json(), status or STATUSES[error.code], headers, "application/json")
