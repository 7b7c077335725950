"""The service's own HTTP interface.

POST /v1/predict                 POST /v1/compare
GET /v1/models[?catalog=true]    GET /v1/models/{model}    GET /v1/tasks
"""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import InvalidRequest
from service.http.body import read_images_body
from service.http.boundary import REST, RestBoundary, answered, single_image
from service.http.server_sent_events import event_stream, server_sent_event
from service.images.url_rules import ImageInput
from service.inference.core import RequestContext
from service.inference.listings import catalog_json, model_json, models_json, tasks_json
from service.inference.prediction import Answer, Piece
from service.schema.rendering import answer_json, comparison_json, piece_json
from service.schema.wire import AnswerJson, ComparisonJson
from tasks.errors import shown


class RestApi:
    """The endpoints under /v1."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        endpoint = self._boundary.endpoint
        return [
            Route("/v1/predict", endpoint(self.predict), methods=["POST"]),
            Route("/v1/compare", endpoint(self.compare), methods=["POST"]),
            Route("/v1/models", endpoint(self.list_models), methods=["GET"]),
            Route("/v1/models/{model_id}", endpoint(self.show_model), methods=["GET"]),
            Route("/v1/tasks", endpoint(self.list_tasks), methods=["GET"]),
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

        async def ask(image: ImageInput, own: RequestContext) -> AnswerJson:
            return answer_json(await core.predict(image, body.fields, own), own.request_id)

        return await answered(core, request, context, body, ask)

    async def compare(self, request: Request, context: RequestContext) -> Response:
        """Answer with several models concurrently."""
        core = self._boundary.core()
        body = await self._boundary.read(read_images_body, request, context)

        async def ask(image: ImageInput, own: RequestContext) -> ComparisonJson:
            return comparison_json(await core.compare(image, body.fields, own), own.request_id)

        return await answered(core, request, context, body, ask)

    async def list_models(self, request: Request, _context: RequestContext) -> Response:
        """List the served models as OpenAI does; `catalog=true` adds the catalog's others."""
        models = self._boundary.core().models
        catalog = request.query_params.get("catalog", "false")
        if catalog not in ("true", "false"):
            raise InvalidRequest(f"catalog must be true or false, not {shown(catalog)}", "catalog")
        return JSONResponse(catalog_json(models) if catalog == "true" else models_json(models))

    async def show_model(self, request: Request, _context: RequestContext) -> Response:
        return JSONResponse(
            model_json(self._boundary.core().models.get(request.path_params["model_id"]))
        )

    async def list_tasks(self, _request: Request, _context: RequestContext) -> Response:
        """List every task with the schema of its parameters and the models that offer it."""
        return JSONResponse(tasks_json(self._boundary.core().models))
