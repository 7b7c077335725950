"""The service's own HTTP interface.

POST /v1/predict    POST /v1/compare    POST /v1/analyze
GET /v1/models[?catalog=true]    GET /v1/models/{model}    GET /v1/tasks
POST /v1/images    GET /v1/images/{image_id}    DELETE /v1/images/{image_id}
"""

import json
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.admission.places import RequestContext
from service.analysis.execution import Analysis, StepAnswer, analyze, stream_analysis
from service.errors import InvalidRequest
from service.http.body import read_body, read_images_body
from service.http.boundary import (
    REST,
    RestBoundary,
    answered,
    event_stream,
    server_sent_event,
    single_image,
)
from service.images.decoding import in_thread
from service.images.handle_store import StoredImage, stored
from service.images.inputs import ImageHandle, ImageInput
from service.inference.prediction import Answer, Piece
from service.schema.rendering import (
    AnalysisJson,
    AnswerJson,
    ComparisonJson,
    DeletedImageJson,
    StoredImageJson,
    analysis_json,
    answer_json,
    catalog_json,
    comparison_json,
    model_json,
    models_json,
    piece_json,
    step_answer_json,
    tasks_json,
)
from tasks.errors import shown


class RestApi:
    """The endpoints under /v1; a key sees its own stored images alone."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        endpoint = self._boundary.endpoint
        image = "/v1/images/{image_id}"
        return [
            Route("/v1/predict", endpoint(self.predict), methods=["POST"]),
            Route("/v1/compare", endpoint(self.compare), methods=["POST"]),
            Route("/v1/models", endpoint(self.list_models), methods=["GET"]),
            Route("/v1/models/{model_id}", endpoint(self.show_model), methods=["GET"]),
            Route("/v1/tasks", endpoint(self.list_tasks), methods=["GET"]),
            Route("/v1/analyze", endpoint(self.analyze), methods=["POST"]),
            Route("/v1/images", endpoint(self.store), methods=["POST"]),
            Route(image, endpoint(self.show), methods=["GET"]),
            Route(image, endpoint(self.delete), methods=["DELETE"]),
        ]

    async def predict(self, request: Request, context: RequestContext) -> Response:
        """Answer with one model: a body, or a stream of its text and then the answer."""
        core = self._boundary.core()
        body = await self._boundary.read(read_images_body, request, context)
        if body.fields.get("stream") is True:

            def form(event: Piece | Answer) -> Iterator[str]:
                if isinstance(event, Piece):
                    yield server_sent_event(piece_json(event).model_dump_json(), "token")
                else:
                    answer = answer_json(event, context.request_id)
                    yield server_sent_event(answer.model_dump_json(), "result")

            events = core.stream(single_image(body), body.fields, context)
            return await event_stream(request, context, REST, events, form)

        async def ask(image: ImageInput, image_context: RequestContext) -> AnswerJson:
            answer = await core.predict(image, body.fields, image_context)
            return answer_json(answer, image_context.request_id)

        return await answered(core, request, context, body, ask)

    async def compare(self, request: Request, context: RequestContext) -> Response:
        """Answer with several models concurrently."""
        core = self._boundary.core()
        body = await self._boundary.read(read_images_body, request, context)

        async def ask(image: ImageInput, image_context: RequestContext) -> ComparisonJson:
            comparison = await core.compare(image, body.fields, image_context)
            return comparison_json(comparison, image_context.request_id)

        return await answered(core, request, context, body, ask)

    async def analyze(self, request: Request, context: RequestContext) -> Response:
        """Answer all steps: a body, or a stream of the answers and then the body."""
        core = self._boundary.core()
        body = await self._boundary.read(read_images_body, request, context)
        if body.fields.get("stream") is True:

            def form(event: StepAnswer | Analysis) -> Iterator[str]:
                if isinstance(event, StepAnswer):
                    answer = step_answer_json(event, context.request_id).model_dump(mode="json")
                    text = json.dumps({"step": event.step_id, **answer})
                    yield server_sent_event(text, "answer")
                else:
                    analysis = analysis_json(event, context.request_id)
                    yield server_sent_event(analysis.model_dump_json(), "result")

            events = stream_analysis(core, single_image(body), body.fields, context)
            return await event_stream(request, context, REST, events, form)

        async def ask(image: ImageInput, image_context: RequestContext) -> AnalysisJson:
            analysis = await analyze(core, image, body.fields, image_context)
            return analysis_json(analysis, image_context.request_id)

        return await answered(core, request, context, body, ask)

    async def list_models(self, request: Request, _context: RequestContext) -> Response:
        """List the served models as OpenAI does; `catalog=true` adds the catalog's others."""
        models = self._boundary.core().models
        catalog = request.query_params.get("catalog", "false")
        if catalog not in ("true", "false"):
            raise InvalidRequest(f"catalog must be true or false, not {shown(catalog)}", "catalog")
        return JSONResponse(catalog_json(models) if catalog == "true" else models_json(models))

    async def show_model(self, request: Request, _context: RequestContext) -> Response:
        models = self._boundary.core().models
        return JSONResponse(model_json(models.get(request.path_params["model_id"])))

    async def list_tasks(self, _request: Request, _context: RequestContext) -> Response:
        """List every task with the schema of its parameters and the models that offer it."""
        return JSONResponse(tasks_json(self._boundary.core().models))

    async def store(self, request: Request, context: RequestContext) -> Response:
        """Store an image; the same bytes of a key have the same id."""
        core = self._boundary.core()
        images = stored(core.handles)
        body = await self._boundary.read(read_body, request, context)
        for name in body.fields:
            raise InvalidRequest(f"unknown field {shown(name)}; the only field is image", name[:80])
        async with core.opened(body.image, context) as image:
            size_wh = image.header.size_wh
            stored_image = await in_thread(images.add, context.quota.owner, image.data, size_wh)
        return _json(stored_image)

    async def show(self, request: Request, context: RequestContext) -> Response:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        return _json(await in_thread(images.describe, context.quota.owner, handle))

    async def delete(self, request: Request, context: RequestContext) -> Response:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        await in_thread(images.remove, context.quota.owner, handle)
        return JSONResponse(DeletedImageJson(id=handle.text).model_dump())


def _json(image: StoredImage) -> Response:
    width, height = image.size_wh
    body = StoredImageJson(
        id=image.id, expires_at=image.expires_at, bytes=image.num_bytes, width=width, height=height
    )
    return JSONResponse(body.model_dump())
