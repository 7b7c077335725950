"""All HTTP interfaces as one ASGI app, which is mounted into BentoML's gateway service.

The service's own is here; a key sees its own stored images alone.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import answering
from service.admission.places import RequestContext, request_id_or_new
from service.admission.threads import STORING
from service.analysis import stream_analysis
from service.answering import answer_each
from service.errors import ErrorCode, InvalidRequest, ServiceError
from service.http import boundary as http
from service.http.body import read_body
from service.http.boundary import REST, Body, Endpoint, RestBoundary
from service.images.handle_store import stored
from service.images.inputs import ImageHandle, ImageInput
from service.inference.core import MAX_IMAGES, Core
from service.label_studio.api import PREFIX as LABEL_STUDIO_PREFIX
from service.label_studio.api import LabelStudioApi
from service.openai.api import OpenAiApi
from service.schema import rendering
from service.web.pages import Pages
from service.x_anylabeling.api import PREFIX as X_ANYLABELING_PREFIX
from service.x_anylabeling.api import XAnyLabelingApi
from tasks.errors import shown
from wire.disconnection import while_connected
from wire.telemetry.metric_files import metrics

_PREFIXES = ("/v1", LABEL_STUDIO_PREFIX, X_ANYLABELING_PREFIX)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_NOT_FOUND = HTTPException(HTTPStatus.NOT_FOUND)
_READ_IMAGES = partial(read_body, max_images=MAX_IMAGES)

Fields = Mapping[str, object]
Stream = Callable[[Core, ImageInput, Fields, RequestContext], AsyncGenerator[Any, None]]
EventJson = Callable[[Any, str], tuple[str, rendering.JsonObject]]


class RestApi:
    """The endpoints under /v1."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        route = self._boundary.route
        predict = self._answering(answering.predict, Core.stream)
        analyze = self._answering(answering.analyze, stream_analysis, rendering.analysis_event)
        return [
            route("POST", "/v1/predict", predict),
            route("POST", "/v1/compare", self._answering(answering.compare)),
            route("GET", "/v1/models", self.list_models),
            route("GET", "/v1/models/{model_id}", self.show_model),
            route("GET", "/v1/tasks", self.list_tasks),
            route("POST", "/v1/analyze", analyze),
            route("POST", "/v1/images", self.store),
            route("GET", "/v1/images/{image_id}", self.show),
            route("DELETE", "/v1/images/{image_id}", self.delete),
        ]

    def _answering(
        self,
        call: answering.Call,
        stream: Stream | None = None,
        event_json: EventJson = rendering.prediction_event,
    ) -> Endpoint:
        """Return an endpoint that answers with a body, or with a stream that ends with the body."""

        async def answer(request: Request, context: RequestContext) -> Body:
            core = self._boundary.core()
            body = await self._boundary.read(_READ_IMAGES, request, context)
            if stream is not None and body.fields.get("stream") is True:
                if body.images is not None:
                    message = "stream is true, which needs image; images is given"
                    raise InvalidRequest(message, "stream")
                events = stream(core, body.image, body.fields, context)

                def form(event: Any) -> list[str]:
                    name, document = event_json(event, context.request_id)
                    return [http.server_sent_event(json.dumps(document), name)]

                return await http.event_stream(request, context, REST, events, form)
            answer_one = partial(call, core, body.fields)
            if body.images is None:
                return await while_connected(request.receive, answer_one(body.image, context))
            several = answer_each(core, body.images, context, answer_one)
            return await while_connected(request.receive, several)

        return answer

    async def list_models(self, request: Request, _context: RequestContext) -> Body:
        models = self._boundary.core().models
        catalog = request.query_params.get("catalog", "false")
        if catalog not in ("true", "false"):
            raise InvalidRequest(f"catalog must be true or false, not {shown(catalog)}", "catalog")
        listing = rendering.catalog_json if catalog == "true" else rendering.models_json
        return listing(models)

    async def show_model(self, request: Request, _context: RequestContext) -> Body:
        models = self._boundary.core().models
        return models.get(request.path_params["model_id"]).describe()

    async def list_tasks(self, _request: Request, _context: RequestContext) -> Body:
        return rendering.tasks_json(self._boundary.core().models)

    async def store(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        images = stored(core.handles)
        body = await self._boundary.read(read_body, request, context)
        for name in body.fields:
            raise InvalidRequest(f"unknown field {shown(name)}; the only field is image", name[:80])
        async with core.opened(body.image, context) as image:
            size_wh = image.header.size_wh
            description = await STORING.run(images.add, context.quota.owner, image.data, size_wh)
        return rendering.StoredImageJson.model_validate(description)

    async def show(self, request: Request, context: RequestContext) -> Body:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        description = await STORING.run(images.describe, context.quota.owner, handle)
        return rendering.StoredImageJson.model_validate(description)

    async def delete(self, request: Request, context: RequestContext) -> Body:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        await STORING.run(images.remove, context.quota.owner, handle)
        return rendering.DeletedImageJson(id=handle.text)


def rest_app(boundary: RestBoundary) -> Starlette:
    return Starlette(
        routes=[
            *RestApi(boundary).routes(),
            *OpenAiApi(boundary).routes(),
            *LabelStudioApi(boundary).routes(),
            *XAnyLabelingApi(boundary).routes(),
            *Pages(boundary).routes(),
            Route("/metrics", metrics, methods=["GET"]),
            # Take precedence over BentoML's routes: their 404 has another form, and the page `/`
            # loads scripts of other hosts.
            *(
                Route(f"{prefix}/{{path:path}}", _no_such_path, methods=_METHODS)
                for prefix in _PREFIXES
            ),
        ],
        exception_handlers={HTTPException: _no_such_path},
    )


async def _no_such_path(request: Request, error: Exception = _NOT_FOUND) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    message = f"no route for {request.method} {request.url.path[:80]}; GET /docs lists the routes"
    request_id = request_id_or_new(request.headers.get("x-request-id"))
    code: ErrorCode = "not_found" if status == HTTPStatus.NOT_FOUND else "invalid_request"
    return http.error_response(ServiceError(message, code=code), request_id, REST, status)
