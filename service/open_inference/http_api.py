"""The Open Inference Protocol v2 over HTTP.

GET /v2  GET /v2/health/live  GET /v2/health/ready, which need no key, and for a model, with or
         without its version:
GET /v2/models/{model}  GET …/config  GET …/ready  POST …/infer

A body is JSON followed by the raw bytes of tensors:

JSON │ first raw input │ second raw input │ …    Inference-Header-Content-Length is the length of
                                                 the JSON; without it, the whole body is JSON.

The parameter `binary_data_size` of an input is the length of its raw bytes. A response has the same
form if the client requests `binary_data`.

Source: triton-inference-server/server docs/protocol/extension_binary_data.md.
"""

import json
from functools import partial
from typing import Annotated, Any

from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.admission.places import RequestContext
from service.errors import InvalidRequest
from service.http.body import BodyMemory, json_object, off_loop, parsed, read_bytes
from service.http.boundary import Body, Interface, RestBoundary
from service.inference.prediction import Answer
from service.inference.served_models import ServedModel
from service.open_inference import tensors
from service.validation import BOUNDED_BY_BODY, StrictModel, validated
from tasks.errors import shown
from wire.disconnection import while_connected

PREFIX = "/v2"
_BINARY_COPIES = 3  # the body, a tensor of it, and the image taken out of that
_MAX_DIMENSIONS = 8
# A batch of one may be nested; the elements are counted when a tensor is read.
_DATA: dict[str, JsonValue] = {"maxItems": tensors.MAX_ELEMENTS, "items": BOUNDED_BY_BODY}


class _InputParameters(StrictModel):
    binary_data_size: int | None = Field(None, ge=0)


class _Input(StrictModel):
    name: str = Field(max_length=tensors.MAX_ID_CHARS)
    datatype: str = Field(max_length=tensors.MAX_ID_CHARS)
    shape: list[int] = Field(max_length=_MAX_DIMENSIONS)
    parameters: _InputParameters = _InputParameters()
    data: Annotated[list[Any], Field(json_schema_extra=_DATA)] | None = None

    def content(self, raw: bytes) -> bytes | list[Any]:
        """Return the elements, of which a batch of one may be nested, or the bytes in `raw`."""
        size = self.parameters.binary_data_size
        if (size is None) == (self.data is None) or len(raw) != (size or 0):
            problem = "needs data, or binary_data_size and as many bytes after the JSON"
            raise InvalidRequest(f"input {shown(self.name)} {problem}", "inputs")
        if self.data is None:
            return raw
        is_nested = len(self.data) == 1 and isinstance(self.data[0], list)
        return self.data[0] if is_nested else self.data


class _OutputParameters(StrictModel):
    binary_data: bool | None = None


class _Output(StrictModel):
    name: str = Field(max_length=tensors.MAX_ID_CHARS)
    parameters: _OutputParameters = _OutputParameters()


class InferJson(StrictModel):
    """Body of a request, or its JSON part."""

    id: str = Field("", max_length=tensors.MAX_ID_CHARS)
    inputs: list[_Input] = Field(max_length=tensors.MAX_TENSORS)
    outputs: list[_Output] = Field([], max_length=tensors.MAX_TENSORS)
    parameters: dict[str, Any] = Field({}, max_length=tensors.MAX_TENSORS)
    # some clients repeat the one of the path
    model_name: str = Field("", max_length=tensors.MAX_ID_CHARS)

    def wants_raw(self) -> bool:
        """Return True if the result is requested raw; an output overrides the request."""
        default = self.parameters.get("binary_data_output", False)
        if not isinstance(default, bool):
            problem = "the parameter binary_data_output must be true or false"
            raise InvalidRequest(problem, "binary_data_output")
        flags = {output.parameters.binary_data for output in self.outputs}
        return True in flags or (default and flags != {False})


class OpenInferenceError(StrictModel):
    """Body of an error response."""

    error: str


OPEN_INFERENCE = Interface(tensors.API, PREFIX, lambda error, _id: {"error": error.message})


class OpenInferenceRest:
    """The endpoints of the protocol."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        route = partial(self._boundary.route, interface=OPEN_INFERENCE)
        routes = [
            route("GET", "", self.server, is_public=True),
            route("GET", "/health/live", self.is_live, is_public=True),
            route("GET", "/health/ready", self.is_ready, is_public=True),
        ]
        for model in ("/models/{model}", "/models/{model}/versions/{version}"):
            routes += [
                route("GET", model, self.model),
                route("GET", f"{model}/config", self.config),
                route("GET", f"{model}/ready", self.is_model_ready),
                route("POST", f"{model}/infer", self.infer),
            ]
        return routes

    async def server(self, _request: Request, _context: RequestContext) -> Body:
        return tensors.server_metadata()

    async def is_live(self, _request: Request, _context: RequestContext) -> Body:
        return {"live": True}

    async def is_ready(self, _request: Request, _context: RequestContext) -> Body:
        core = self._boundary.core()
        await core.check_ready(tuple(core.models))
        return {"ready": True}

    async def model(self, request: Request, _context: RequestContext) -> Body:
        return tensors.model_metadata(self._model(request))

    async def config(self, request: Request, _context: RequestContext) -> Body:
        return tensors.model_config(self._model(request))

    async def is_model_ready(self, request: Request, _context: RequestContext) -> Body:
        model = self._model(request)
        await self._boundary.core().check_ready([model])
        return {"name": model.id, "ready": True}

    def _model(self, request: Request) -> ServedModel:
        models = self._boundary.core().models
        parameters = request.path_params
        return tensors.model_of(models, parameters["model"], parameters.get("version", ""))

    async def infer(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        model = self._model(request)
        json_length = request.headers.get("inference-header-content-length")
        parse = partial(read_request, json_length=json_length)

        async def read(request: Request, memory: BodyMemory) -> tensors.InferRequest:
            if json_length is None:
                return await parsed(parse, await read_bytes(request, memory), memory)
            return await off_loop(parse, await read_bytes(request, memory, _BINARY_COPIES))

        infer = await self._boundary.read(read, request, context)
        context = tensors.request_context(infer, context)
        request.state.request_id = context.request_id
        body = tensors.request_body(infer, model)
        answer = await while_connected(
            request.receive, core.predict(body.image, body.fields, context)
        )
        return write_answer(answer, infer, context.request_id)


def read_request(body: bytes, json_length: str | None) -> tensors.InferRequest:
    """Read a request; `json_length` is the value of the header. Raise `InvalidRequest`."""
    start = len(body)
    if json_length is not None:
        is_number = json_length.isascii() and json_length.isdigit() and len(json_length) <= 15
        if not is_number or int(json_length) > len(body):
            problem = f"Inference-Header-Content-Length is {shown(json_length)}"
            raise InvalidRequest(f"{problem}; it must be at most the {len(body)} bytes of the body")
        start = int(json_length)
    document = validated(InferJson, json_object(body[:start]))
    inputs: list[tensors.Tensor] = []
    for tensor in document.inputs:
        num_bytes = tensor.parameters.binary_data_size or 0
        data = tensor.content(body[start : start + num_bytes])
        inputs.append(tensors.Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
        start += num_bytes
    if start != len(body):
        raise InvalidRequest(f"the body has {len(body) - start} bytes after its last input")
    parameters = dict(document.parameters)
    parameters.pop("binary_data_output", None)
    outputs = tuple(output.name for output in document.outputs)
    return tensors.InferRequest(
        document.id, tuple(inputs), parameters, outputs, document.wants_raw()
    )


def write_answer(answer: Answer, request: tensors.InferRequest, request_id: str) -> Response:
    document = tensors.answer_document(answer, request, request_id)
    (output,) = document["outputs"]
    if not request.wants_raw:
        output["data"] = [tensors.result_text(answer, request_id)]
        return JSONResponse(document)
    raw = tensors.raw_result(answer, request_id)
    output["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, headers=headers, media_type="application/octet-stream")
