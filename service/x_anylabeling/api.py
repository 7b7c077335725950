"""X-AnyLabeling's remote server protocol over the core.

/integrations/x-anylabeling  + GET /health                     GET /v1/models
                               GET /v1/models/{model}/info     POST /v1/predict

The API key is in the header `Token`. Errors have the statuses and the body of the service's own
interface, and not the 200 of X-AnyLabeling-Server, as X-AnyLabeling shows a failed status only.
Source: CVHub520/X-AnyLabeling@0f38687 anylabeling/services/auto_labeling/remote_server.py
(requests), CVHub520/X-AnyLabeling-Server@aad6ffa docs/router.md (answers).
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.http.body import read_body
from service.http.boundary import Endpoint, Interface, RestBoundary
from service.images.decoding import in_thread
from service.inference.core import RequestContext
from service.inference.served_models import ServedModel
from service.validation import validated
from service.x_anylabeling.asks import Call, model_json
from service.x_anylabeling.shapes import shapes_json
from wire.disconnection import while_connected

PREFIX = "/integrations/x-anylabeling"
X_ANYLABELING = Interface("x_anylabeling")


class XAnyLabelingApi:
    """The endpoints of the protocol."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        return [
            Route(f"{PREFIX}/health", self._endpoint(self.health), methods=["GET"]),
            Route(f"{PREFIX}/v1/models", self._endpoint(self.list_models), methods=["GET"]),
            Route(
                f"{PREFIX}/v1/models/{{model}}/info",
                self._endpoint(self.show_model),
                methods=["GET"],
            ),
            Route(f"{PREFIX}/v1/predict", self._endpoint(self.predict), methods=["POST"]),
        ]

    def _endpoint(self, function: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        return _with_bearer(self._boundary.endpoint(function, X_ANYLABELING))

    async def health(self, _request: Request, _context: RequestContext) -> Response:
        num_models = len(tuple(self._boundary.core().models))
        now = datetime.now(UTC).isoformat()
        return JSONResponse({"status": "healthy", "models_loaded": num_models, "timestamp": now})

    async def list_models(self, _request: Request, _context: RequestContext) -> Response:
        return _succeeded({model.id: model_json(model) for model in self._boundary.core().models})

    async def show_model(self, request: Request, _context: RequestContext) -> Response:
        model: ServedModel = self._boundary.core().models.get(request.path_params["model"])
        return _succeeded({"model_id": model.id, **model_json(model)})

    async def predict(self, request: Request, context: RequestContext) -> Response:
        core = self._boundary.core()
        body = await self._boundary.read(read_body, request, context)
        call = validated(Call, body.fields)
        fields = call.fields(core.models.get(call.model).entry.task_ids)
        answer = await while_connected(request.receive, core.predict(body.image, fields, context))
        region = answer.request.parameters.region
        return _succeeded(await in_thread(shapes_json, answer, call.params.epsilon_factor, region))


def _succeeded(data: object) -> Response:
    return JSONResponse({"success": True, "data": data})


def _with_bearer(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint for requests whose key is in the header `Token`, if any."""

    async def answer(request: Request) -> Response:
        tokens = [value for name, value in request.scope["headers"] if name == b"token" and value]
        bearers = [(b"authorization", b"Bearer " + token) for token in tokens]
        headers = [*request.scope["headers"], *bearers]
        return await endpoint(Request({**request.scope, "headers": headers}, request.receive))

    return answer
