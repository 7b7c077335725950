"""The Open Inference Protocol v2 over HTTP.

A body is JSON followed by the raw bytes of tensors:

JSON │ first raw input │ second raw input │ …    Inference-Header-Content-Length is the length of
                                                 the JSON; without it, the whole body is JSON.

The parameter `binary_data_size` of an input is the length of its raw bytes. A response has the same
form if the client requests `binary_data`.

Every field of a request except `model`, which is part of the protocol, is an input of the same
name: `image`, strings and lists of strings are BYTES, numbers INT64 or FP64, booleans BOOL. A
scalar has the shape [1], a list [n]; a leading batch dimension of 1 is accepted. Scalars may be
parameters of the request instead. The output `result` is the JSON body of /v1/predict. Raw tensors
are little-endian; each element of BYTES follows its length in 4 bytes.

Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md,
triton-inference-server/server docs/protocol/extension_binary_data.md and
extension_model_configuration.md.
"""

import json
import math
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Annotated, Any

from pydantic import Field, JsonValue, PrivateAttr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.admission.places import RequestContext, is_valid_request_id
from service.errors import InvalidRequest, ServiceError
from service.http.body import (
    BodyMemory,
    RequestBody,
    json_object,
    missing_image,
    off_loop,
    parse_image,
    parsed,
    read_bytes,
)
from service.http.boundary import Body, Interface, RestBoundary
from service.images.inputs import file_or_handle
from service.inference.prediction import Answer
from service.inference.request_fields import GenerationFields
from service.inference.served_models import ServedModel
from service.schema.rendering import answer_json
from service.validation import BOUNDED_BY_BODY, StrictModel, validated
from tasks.errors import shown
from tasks.table import TASKS, Task
from wire.disconnection import while_connected

PREFIX = "/v2"
_BINARY_COPIES = 3  # the body, a tensor of it, and the image taken out of that
_MAX_DIMENSIONS = 8
VERSION = "1"  # the same for every model
OUTPUT = "result"
MAX_TENSORS = 100  # inputs, outputs or parameters of a request; each name occurs once
MAX_ID_CHARS = 256
MAX_ELEMENTS = 1000  # per tensor; more than any list of a request needs
_MAX_TIMEOUT_US = 2**63
_OF_PROTOCOL = ("timeout", "binary_data_output")  # parameters that are not fields
_FOR_TRITON = "triton_"  # prefix of parameters that clients address to Triton itself
_LENGTH = struct.Struct("<I")
# format characters of struct
_ELEMENTS = {"BOOL": "?", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d"}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"} | {
    name: f"TYPE_{name}" for name in ("INT64", "FP64", "BOOL")
}
# Accepted datatypes for each JSON type; metadata names the first.
_DATATYPES = {
    "string": ("BYTES",),
    "integer": ("INT64", "INT32"),
    "number": ("FP64", "FP32", "INT64", "INT32"),
    "boolean": ("BOOL",),
}

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Accepted form of the tensor of a field."""

    name: str
    datatypes: tuple[str, ...]
    length: int | None = 1  # None allows any
    is_list: bool = False
    is_required: bool = False

    @property
    def shape(self) -> list[int]:
        return [-1 if self.length is None else self.length]


# A batch of one may be nested; the elements are counted when a tensor is read.
_DATA: dict[str, JsonValue] = {"maxItems": MAX_ELEMENTS, "items": BOUNDED_BY_BODY}


class _InputParameters(StrictModel):
    binary_data_size: int | None = Field(None, ge=0)


class _Input(StrictModel):
    name: str = Field(max_length=MAX_ID_CHARS)
    datatype: str = Field(max_length=MAX_ID_CHARS)
    shape: list[int] = Field(max_length=_MAX_DIMENSIONS)
    parameters: _InputParameters = _InputParameters()
    data: Annotated[list[Any], Field(json_schema_extra=_DATA)] | None = None

    _raw: bytes = PrivateAttr(b"")

    def receive(self, raw: bytes) -> None:
        """Take the bytes after the JSON; raise `InvalidRequest` for another number of them."""
        size = self.parameters.binary_data_size
        if (size is None) == (self.data is None) or len(raw) != (size or 0):
            problem = "needs data, or binary_data_size and as many bytes after the JSON"
            raise InvalidRequest(f"input {shown(self.name)} {problem}", "inputs")
        self._raw = raw

    def elements(self, length: int) -> Sequence[object]:
        """Return the elements; raise `struct.error` or `ValueError` for bytes that do not fit."""
        if self.data is not None:  # a batch of one may be nested
            is_nested = len(self.data) == 1 and isinstance(self.data[0], list)
            return self.data[0] if is_nested else self.data
        data = self._raw
        if self.datatype != "BYTES":
            return struct.unpack(f"<{length}{_ELEMENTS[self.datatype]}", data)
        texts: list[bytes] = []
        start = 0
        while start < len(data) and len(texts) < length:
            (num_bytes,) = _LENGTH.unpack_from(data, start)
            start += _LENGTH.size
            texts.append(data[start : start + num_bytes])
            start += num_bytes
        if start != len(data):
            raise ValueError(f"{len(data)} bytes in place of {start}")
        return texts


class _OutputParameters(StrictModel):
    binary_data: bool | None = None


class _Output(StrictModel):
    name: str = Field(max_length=MAX_ID_CHARS)
    parameters: _OutputParameters = _OutputParameters()


class InferJson(StrictModel):
    """Body of a request, or its JSON part."""

    id: str = Field("", max_length=MAX_ID_CHARS)
    inputs: list[_Input] = Field(max_length=MAX_TENSORS)
    outputs: list[_Output] = Field([], max_length=MAX_TENSORS)
    parameters: dict[str, Any] = Field({}, max_length=MAX_TENSORS)
    # some clients repeat the one of the path
    model_name: str = Field("", max_length=MAX_ID_CHARS)

    def wants_raw(self) -> bool:
        """Return True if the result is requested raw; an output overrides the request."""
        default = self.parameters.get("binary_data_output", False)
        if not isinstance(default, bool):
            problem = "the parameter binary_data_output must be true or false"
            raise InvalidRequest(problem, "binary_data_output")
        flags = {output.parameters.binary_data for output in self.outputs}
        return True in flags or (default and flags != {False})


def _input_specs(tasks: Iterable[Task]) -> dict[str, InputSpec]:
    schemas: JsonObject = {"image": {"type": "string"}}
    schemas |= GenerationFields.model_json_schema()["properties"]
    for parameter in chain.from_iterable(task.parameters for task in tasks):
        schemas[parameter.name] = parameter.json_schema()
    specs: dict[str, InputSpec] = {}
    for name, schema in schemas.items():
        value = schema["anyOf"][0] if "anyOf" in schema else schema  # the other one is null
        if value["type"] == "array":
            length = value["maxItems"] if value["minItems"] == value["maxItems"] else None
            specs[name] = InputSpec(name, _DATATYPES[value["items"]["type"]], length, is_list=True)
        else:
            is_required = name in ("image", "task")
            specs[name] = InputSpec(name, _DATATYPES[value["type"]], is_required=is_required)
    return specs


_INPUTS = _input_specs(TASKS.values())


def request_context(request: InferJson, context: RequestContext) -> RequestContext:
    timeout_us = request.parameters.get("timeout", 0)  # 0 is none, as in Triton
    if type(timeout_us) is not int or not 0 <= timeout_us < _MAX_TIMEOUT_US:
        problem = f"the parameter timeout is {shown(timeout_us)}"
        raise InvalidRequest(f"{problem}; it must be a whole number of microseconds", "timeout")
    end_s = time.monotonic() + timeout_us / 1e6 if timeout_us else math.inf
    request_id = request.id if is_valid_request_id(request.id) else context.request_id
    return replace(context, request_id=request_id, deadline_s=min(context.deadline_s, end_s))


def request_body(request: InferJson, model: ServedModel) -> RequestBody:
    """Return the image and the other fields in their JSON types; raise `InvalidRequest`."""
    options = {
        name: value
        for name, value in request.parameters.items()
        if name not in _OF_PROTOCOL and not name.startswith(_FOR_TRITON)
    }
    fields = dict(options)
    for tensor in request.inputs:
        if tensor.name not in _INPUTS:
            problem = f"unknown input {shown(tensor.name)}; the inputs are {', '.join(_INPUTS)}"
            raise InvalidRequest(problem, "inputs")
        if tensor.name in fields:
            raise InvalidRequest(f"{tensor.name} occurs twice; send it once", tensor.name)
        fields[tensor.name] = _value(tensor)
    for name in options:
        if name not in _INPUTS or name == "image":
            raise InvalidRequest(f"unknown parameter {shown(name)}", "parameters")
    for output in request.outputs:
        if output.name != OUTPUT:
            problem = f"unknown output {shown(output.name)}; the only output is {OUTPUT}"
            raise InvalidRequest(problem, "outputs")
    image = fields.pop("image", None)
    if image is None:
        raise missing_image()
    image = file_or_handle(image) if isinstance(image, bytes) else parse_image(image)
    return RequestBody(image, {**fields, "model": model.id})


def _value(tensor: _Input) -> object:
    spec = _INPUTS[tensor.name]
    *batch, length = tensor.shape or [-1]
    is_length = 0 <= length <= MAX_ELEMENTS and spec.length in (None, length)
    if tensor.datatype not in spec.datatypes or batch not in ([], [1]) or not is_length:
        size = spec.length or "n"
        allowed = f"{' or '.join(spec.datatypes)} of shape [{size}] or [1, {size}]"
        sent = f"{shown(tensor.datatype)} of shape {shown(tensor.shape[:4])}"
        raise _invalid(tensor, f"is {sent}; it must be {allowed}")
    try:
        elements = tensor.elements(length)
        if len(elements) != length:
            raise ValueError(f"{len(elements)} elements")
        if spec.name == "image":
            return elements[0]
        values = [item.decode() if isinstance(item, bytes) else item for item in elements]
    except (ValueError, struct.error) as error:
        raise _invalid(tensor, f"does not fit datatype and shape: {error}") from error
    return values if spec.is_list else values[0]


def _invalid(tensor: _Input, problem: str) -> InvalidRequest:
    return InvalidRequest(f"input {tensor.name} {problem}", tensor.name)


def _specs(model: ServedModel) -> Iterable[InputSpec]:
    return _input_specs(TASKS[task_id] for task_id in model.entry.task_ids).values()


def _names(model: ServedModel) -> JsonObject:
    return {"name": model.id, "platform": f"diptych_{model.entry.family}"}


class OpenInferenceError(StrictModel):
    """Body of an error response."""

    error: str


OPEN_INFERENCE = Interface("oip", PREFIX, lambda error, _id: {"error": error.message})


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
        extensions = ["binary_tensor_data", "model_configuration", "parameters"]
        return {"name": "diptych", "version": "1", "extensions": extensions}

    async def is_live(self, _request: Request, _context: RequestContext) -> Body:
        return {"live": True}

    async def is_ready(self, _request: Request, _context: RequestContext) -> Body:
        core = self._boundary.core()
        await core.check_ready(tuple(core.models))
        return {"ready": True}

    async def model(self, request: Request, _context: RequestContext) -> Body:
        model = self._model(request)
        inputs: list[JsonObject] = []
        for spec in _specs(model):
            inputs.append({"name": spec.name, "datatype": spec.datatypes[0], "shape": spec.shape})
        output = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
        return {**_names(model), "versions": [VERSION], "inputs": inputs, "outputs": [output]}

    async def config(self, request: Request, _context: RequestContext) -> Body:
        """Return the part of Triton's model configuration that its load tools read."""
        model = self._model(request)
        inputs: list[JsonObject] = []
        for spec in _specs(model):
            config = {"name": spec.name, "data_type": _CONFIG_TYPES[spec.datatypes[0]]}
            inputs.append({**config, "dims": spec.shape, "optional": not spec.is_required})
        output = {"name": OUTPUT, "data_type": "TYPE_STRING", "dims": [1]}
        return {**_names(model), "max_batch_size": 0, "input": inputs, "output": [output]}

    async def is_model_ready(self, request: Request, _context: RequestContext) -> Body:
        model = self._model(request)
        await self._boundary.core().check_ready([model])
        return {"name": model.id, "ready": True}

    def _model(self, request: Request) -> ServedModel:
        model = self._boundary.core().models.get(request.path_params["model"])
        version = request.path_params.get("version", VERSION)
        if version != VERSION:
            message = f"model {model.id} has version {VERSION}, not {shown(version)}"
            raise ServiceError(message, "version", "unknown_model")
        return model

    async def infer(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        model = self._model(request)
        json_length = request.headers.get("inference-header-content-length")
        parse = partial(read_request, json_length=json_length)

        async def read(request: Request, memory: BodyMemory) -> InferJson:
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
        return write_answer(answer, infer, context.request_id)


def read_request(body: bytes, json_length: str | None) -> InferJson:
    """Read a request; `json_length` is the value of the header. Raise `InvalidRequest`."""
    start = len(body)
    if json_length is not None:
        is_number = json_length.isascii() and json_length.isdigit() and len(json_length) <= 15
        if not is_number or int(json_length) > len(body):
            problem = f"Inference-Header-Content-Length is {shown(json_length)}"
            raise InvalidRequest(f"{problem}; it must be at most the {len(body)} bytes of the body")
        start = int(json_length)
    request = validated(InferJson, json_object(body[:start]))
    for tensor in request.inputs:
        num_bytes = tensor.parameters.binary_data_size or 0
        tensor.receive(body[start : start + num_bytes])
        start += num_bytes
    if start != len(body):
        raise InvalidRequest(f"the body has {len(body) - start} bytes after its last input")
    request.wants_raw()  # refuses another value than true and false
    return request


def write_answer(answer: Answer, request: InferJson, request_id: str) -> Response:
    output: JsonObject = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    document = {
        "model_name": answer.model.id,
        "model_version": VERSION,
        "id": request.id or request_id,
        "outputs": [output],
    }
    text = answer_json(answer, request_id).model_dump_json()
    if not request.wants_raw():
        output["data"] = [text]
        return JSONResponse(document)
    element = text.encode()
    output["parameters"] = {"binary_data_size": _LENGTH.size + len(element)}
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    content = head + _LENGTH.pack(len(element)) + element
    return Response(content, headers=headers, media_type="application/octet-stream")
