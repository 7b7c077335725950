"""The Open Inference Protocol v2 over HTTP.

GET /v2  GET /v2/health/live  GET /v2/health/ready, which need no key, and for a model, with or
         without its version:
GET /v2/models/{model}  GET …/config  GET …/ready  POST …/infer
"""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import InvalidRequest
from service.http.body import BodyMemory, off_loop, parsed, read_bytes
from service.http.boundary import Endpoint, Interface, RestBoundary
from service.inference.core import Core, RequestContext
from service.inference.served_models import ServedModel
from service.open_inference.http_bodies import (
    InferBody,
    OpenInferenceError,
    read_request,
    write_answer,
)
from service.open_inference.metadata import model_config, model_metadata, server_metadata
from service.open_inference.tensors import (
    API,
    InferRequest,
    model_of,
    request_body,
    request_context,
)
from tasks.errors import shown
from wire.disconnection import while_connected

PREFIX = "/v2"
_BINARY_COPIES = 3  # the body, a tensor of it, and the image taken out of that
_MODEL_PATHS = (f"{PREFIX}/models/{{model}}", f"{PREFIX}/models/{{model}}/versions/{{version}}")


OPEN_INFERENCE = Interface(
    API, lambda error, _request_id: OpenInferenceError(error=error.message).model_dump()
)


class OpenInferenceRest:
    """The endpoints of the protocol."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        routes = [
            self._route("GET", PREFIX, self.server, is_public=True),
            self._route("GET", f"{PREFIX}/health/live", self.is_live, is_public=True),
            self._route("GET", f"{PREFIX}/health/ready", self.is_ready, is_public=True),
        ]
        for model in _MODEL_PATHS:
            routes += [
                self._route("GET", model, self.model),
                self._route("GET", f"{model}/config", self.config),
                self._route("GET", f"{model}/ready", self.is_model_ready),
                self._route("POST", f"{model}/infer", self.infer),
            ]
        return routes

    def _route(
        self, method: str, path: str, function: Endpoint, *, is_public: bool = False
    ) -> Route:
        endpoint = self._boundary.endpoint(function, OPEN_INFERENCE, is_public=is_public)
        return Route(path, endpoint, methods=[method])

    async def server(self, _request: Request, _context: RequestContext) -> Response:
        return JSONResponse(server_metadata())

    async def is_live(self, _request: Request, _context: RequestContext) -> Response:
        return JSONResponse({"live": True})

    async def is_ready(self, _request: Request, _context: RequestContext) -> Response:
        core = self._boundary.core()
        await core.check_ready(tuple(core.models))
        return JSONResponse({"ready": True})

    async def model(self, request: Request, _context: RequestContext) -> Response:
        return JSONResponse(model_metadata(_model(self._boundary.core(), request)))

    async def config(self, request: Request, _context: RequestContext) -> Response:
        return JSONResponse(model_config(_model(self._boundary.core(), request)))

    async def is_model_ready(self, request: Request, _context: RequestContext) -> Response:
        core = self._boundary.core()
        model = _model(core, request)
        await core.check_ready([model])
        return JSONResponse({"name": model.id, "ready": True})

    async def infer(self, request: Request, context: RequestContext) -> Response:
        core = self._boundary.core()
        model = _model(core, request)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise InvalidRequest(
                f"Content-Encoding is {shown(encoding)}; compressed bodies are not supported"
            )
        json_length = request.headers.get("inference-header-content-length")
        parse = partial(read_request, json_length=json_length)

        async def read(request: Request, memory: BodyMemory) -> InferRequest:
            if json_length is None:
                return await parsed(parse, await read_bytes(request, memory), memory)
            return await off_loop(parse, await read_bytes(request, memory, _BINARY_COPIES))

        infer = await self._boundary.read(read, request, context)
        context = request_context(infer, context)
        request.state.request_id = context.request_id
        body = request_body(infer, model)
        answer = await while_connected(
            request.receive, core.predict(body.image, body.fields, context)
        )
        return _response(write_answer(answer, infer, context.request_id))


def _model(core: Core, request: Request) -> ServedModel:
    return model_of(
        core.models, request.path_params["model"], request.path_params.get("version", "")
    )


def _response(body: InferBody) -> Response:
    if body.json_length is None:
        return Response(body.content, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(body.json_length)}
    return Response(body.content, headers=headers, media_type="application/octet-stream")
