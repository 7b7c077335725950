"""The service's own HTTP interface around the core.

POST /v1/predict  POST /v1/compare  GET /v1/models  GET /v1/tasks
"""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.disconnection import while_connected
from service.core import RequestContext
from service.errors import ServiceError
from service.listings import models_json, tasks_json
from service.responses import answer_json, error_detail, image_json
from service.rest_boundary import RestBoundary
from service.wire import ComparisonJson, ModelErrorJson


class RestApi:
    """The endpoints of the contract."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        """Return the routes."""
        endpoint = self._boundary.endpoint
        return [
            Route("/v1/predict", endpoint(self.predict), methods=["POST"]),
            Route("/v1/compare", endpoint(self.compare), methods=["POST"]),
            Route("/v1/models", endpoint(self.list_models), methods=["GET"]),
            Route("/v1/tasks", endpoint(self.list_tasks), methods=["GET"]),
        ]

    async def predict(self, request: Request, context: RequestContext) -> Response:
        """Answer with one model."""
        core = self._boundary.authorized(request)
        body = await self._boundary.body(request)
        answer = await while_connected(request.receive, core.predict(body.image, body.fields, context))
        return _json(answer_json(answer, context.request_id))

    async def compare(self, request: Request, context: RequestContext) -> Response:
        """Answer with several models at the same time."""
        core = self._boundary.authorized(request)
        body = await self._boundary.body(request)
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

    async def list_models(self, request: Request, _context: RequestContext) -> Response:
        """List the served models in the format of OpenAI's API."""
        return JSONResponse(models_json(self._boundary.authorized(request).models))

    async def list_tasks(self, request: Request, _context: RequestContext) -> Response:
        """List every task with the schema of its parameters and the models that offer it."""
        return JSONResponse(tasks_json(self._boundary.authorized(request).models))


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_unset=True), media_type="application/json")
