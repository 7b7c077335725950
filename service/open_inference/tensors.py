"""Open Inference Protocol v2: tensors to image and fields of a request, an answer to a tensor, and
metadata as JSON, whose fields the gRPC messages have too.

Knows no transport.

Every field of a request except `model`, which is part of the protocol, is an input of the same
name: `image`, strings and lists of strings are BYTES, numbers INT64 or FP64, booleans BOOL. A
scalar has the shape [1], a list [n]; a leading batch dimension of 1 is accepted. Scalars may be
parameters of the request instead. The output `result` is the JSON body of /v1/predict. Raw tensors
are little-endian; each element of BYTES follows its length in 4 bytes.

Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md and
open_inference_grpc.proto, triton-inference-server/server docs/protocol/extension_binary_data.md and
extension_model_configuration.md.
"""

import math
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from service.admission.places import RequestContext, is_valid_request_id
from service.errors import InvalidRequest, ServiceError
from service.http.body import RequestBody, missing_image, parse_image
from service.images.inputs import file_or_handle
from service.inference.prediction import Answer
from service.inference.request_fields import GenerationFields
from service.inference.served_models import ServedModel, ServedModels
from service.schema.rendering import answer_json
from tasks.errors import shown
from tasks.table import TASKS, Task

API = "oip"  # label in metrics, for both transports
VERSION = "1"  # the same for every model
OUTPUT = "result"
MAX_TENSORS = 100  # inputs, outputs or parameters of a request; each name occurs once
MAX_ID_CHARS = 256
MAX_ELEMENTS = 1000  # per tensor; more than any list of a request needs
_MAX_TIMEOUT_US = 2**63
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


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input as received: raw bytes, or its elements in JSON types (of BYTES also `bytes`)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Sequence[object]


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request of either transport."""

    id: str  # empty: none
    inputs: tuple[Tensor, ...]
    parameters: Mapping[str, object]
    outputs: tuple[str, ...]
    wants_raw: bool  # the result as raw bytes


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
            datatypes = _DATATYPES[value["items"]["type"]]
            specs[name] = InputSpec(name, datatypes, length, is_list=True)
        else:
            is_required = name in ("image", "task")
            specs[name] = InputSpec(name, _DATATYPES[value["type"]], is_required=is_required)
    return specs


_INPUTS = _input_specs(TASKS.values())


def model_of(models: ServedModels, name: str, version: str) -> ServedModel:
    model = models.get(name)
    if version not in ("", VERSION):
        message = f"model {name} has version {VERSION}, not {shown(version)}"
        raise ServiceError(message, "version", "unknown_model")
    return model


def request_context(request: InferRequest, context: RequestContext) -> RequestContext:
    """Return `context` with the request's id and `timeout`, microseconds."""
    timeout_us = request.parameters.get("timeout", 0)  # 0 is none, as in Triton
    if type(timeout_us) is not int or not 0 <= timeout_us < _MAX_TIMEOUT_US:
        problem = f"the parameter timeout is {shown(timeout_us)}"
        raise InvalidRequest(f"{problem}; it must be a whole number of microseconds", "timeout")
    end_s = time.monotonic() + timeout_us / 1e6 if timeout_us else math.inf
    request_id = request.id if is_valid_request_id(request.id) else context.request_id
    return replace(context, request_id=request_id, deadline_s=min(context.deadline_s, end_s))


def request_body(request: InferRequest, model: ServedModel) -> RequestBody:
    """Return the image and the other fields in their JSON types; raise `InvalidRequest`."""
    options = {
        name: value
        for name, value in request.parameters.items()
        if name != "timeout" and not name.startswith(_FOR_TRITON)
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
    for name in request.outputs:
        if name != OUTPUT:
            problem = f"unknown output {shown(name)}; the only output is {OUTPUT}"
            raise InvalidRequest(problem, "outputs")
    image = fields.pop("image", None)
    if image is None:
        raise missing_image()
    image = file_or_handle(image) if isinstance(image, bytes) else parse_image(image)
    return RequestBody(image, {**fields, "model": model.id})


def answer_document(answer: Answer, request: InferRequest, request_id: str) -> JsonObject:
    """Return a response, whose output has no data yet."""
    output = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    return {
        "model_name": answer.model.id,
        "model_version": VERSION,
        "id": request.id or request_id,
        "outputs": [output],
    }


def result_text(answer: Answer, request_id: str) -> str:
    """Return the element of the result, which is the body of /v1/predict."""
    return answer_json(answer, request_id).model_dump_json()


def raw_result(answer: Answer, request_id: str) -> bytes:
    """Return the result as a raw BYTES tensor."""
    text = result_text(answer, request_id).encode()
    return _LENGTH.pack(len(text)) + text


def _value(tensor: Tensor) -> object:
    spec = _INPUTS[tensor.name]
    *batch, length = tensor.shape or (-1,)
    is_length = 0 <= length <= MAX_ELEMENTS and spec.length in (None, length)
    if tensor.datatype not in spec.datatypes or batch not in ([], [1]) or not is_length:
        size = spec.length or "n"
        allowed = f"{' or '.join(spec.datatypes)} of shape [{size}] or [1, {size}]"
        sent = f"{shown(tensor.datatype)} of shape {shown(list(tensor.shape[:4]))}"
        raise _invalid(tensor, f"is {sent}; it must be {allowed}")
    try:
        elements = _elements(tensor, length)
        if len(elements) != length:
            raise ValueError(f"{len(elements)} elements")
        if spec.name == "image":
            return elements[0]
        values = [item.decode() if isinstance(item, bytes) else item for item in elements]
    except (ValueError, struct.error) as error:
        raise _invalid(tensor, f"does not fit datatype and shape: {error}") from error
    return values if spec.is_list else values[0]


def _elements(tensor: Tensor, length: int) -> Sequence[object]:
    """Return the elements; raise `struct.error` or `ValueError` for bytes that do not fit."""
    data = tensor.data
    if not isinstance(data, bytes):
        return data
    if tensor.datatype != "BYTES":
        return struct.unpack(f"<{length}{_ELEMENTS[tensor.datatype]}", data)
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


def _invalid(tensor: Tensor, problem: str) -> InvalidRequest:
    return InvalidRequest(f"input {tensor.name} {problem}", tensor.name)


def server_metadata() -> JsonObject:
    extensions = ["binary_tensor_data", "model_configuration", "parameters"]
    return {"name": "diptych", "version": "1", "extensions": extensions}


def model_metadata(model: ServedModel) -> JsonObject:
    inputs: list[JsonObject] = []
    for spec in _specs(model):
        inputs.append({"name": spec.name, "datatype": spec.datatypes[0], "shape": _shape(spec)})
    output = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    return {**_names(model), "versions": [VERSION], "inputs": inputs, "outputs": [output]}


def model_config(model: ServedModel) -> JsonObject:
    """Return the part of Triton's model configuration that its load tools read."""
    inputs: list[JsonObject] = []
    for spec in _specs(model):
        config = {"name": spec.name, "data_type": _CONFIG_TYPES[spec.datatypes[0]]}
        inputs.append({**config, "dims": _shape(spec), "optional": not spec.is_required})
    output = {"name": OUTPUT, "data_type": "TYPE_STRING", "dims": [1]}
    return {**_names(model), "max_batch_size": 0, "input": inputs, "output": [output]}


def _specs(model: ServedModel) -> Iterable[InputSpec]:
    return _input_specs(TASKS[task_id] for task_id in model.entry.task_ids).values()


def _shape(spec: InputSpec) -> list[int]:
    return [-1 if spec.length is None else spec.length]


def _names(model: ServedModel) -> JsonObject:
    return {"name": model.id, "platform": f"diptych_{model.entry.family}"}
