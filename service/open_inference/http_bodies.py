"""Bodies of the Open Inference Protocol over HTTP: JSON followed by the raw bytes of tensors.

Knows no server.

JSON │ first raw input │ second raw input │ …    Inference-Header-Content-Length is the length of
                                                 the JSON; without it,
the whole body is JSON. The parameter `binary_data_size` of an input is the length of its raw bytes.
A response has the same form if the client requests `binary_data`.

Source: triton-inference-server/server docs/protocol/extension_binary_data.md.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.errors import InvalidRequest
from service.http.json_values import json_object
from service.inference.prediction import Answer
from service.open_inference.tensors import (
    MAX_ELEMENTS,
    MAX_ID_CHARS,
    MAX_TENSORS,
    OUTPUT,
    VERSION,
    InferRequest,
    Tensor,
    raw_result,
    result_text,
)
from service.validation import BOUNDED_BY_BODY, validated
from tasks.errors import shown

_MAX_DIMENSIONS = 8
# A batch of one may be nested; the elements are counted when a tensor is read.
_DATA: dict[str, JsonValue] = {"maxItems": MAX_ELEMENTS, "items": BOUNDED_BY_BODY}


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _InputParameters(_Json):
    binary_data_size: int | None = Field(None, ge=0)


class _Input(_Json):
    name: str = Field(max_length=MAX_ID_CHARS)
    datatype: str = Field(max_length=MAX_ID_CHARS)
    shape: list[int] = Field(max_length=_MAX_DIMENSIONS)
    parameters: _InputParameters = _InputParameters()
    data: Annotated[list[Any], Field(json_schema_extra=_DATA)] | None = None

    def content(self, raw: bytes) -> bytes | list[Any]:
        """Return the elements, of which a batch of one may be nested, or the bytes in `raw`."""
        size = self.parameters.binary_data_size
        if self.data is None:
            if size is None:
                problem = "has neither data nor binary_data_size"
            elif len(raw) == size:
                return raw
            else:
                problem = f"has a binary_data_size of {size} and {len(raw)} bytes follow"
        elif size is None:
            is_nested = len(self.data) == 1 and isinstance(self.data[0], list)
            return self.data[0] if is_nested else self.data
        else:
            problem = f"has a binary_data_size of {size} and also data"
        raise InvalidRequest(f"input {shown(self.name)} {problem}", "inputs")


class _OutputParameters(_Json):
    binary_data: bool | None = None


class _Output(_Json):
    name: str = Field(max_length=MAX_ID_CHARS)
    parameters: _OutputParameters = _OutputParameters()


class InferJson(_Json):
    """Body of a request, or its JSON part."""

    id: str = Field("", json_schema_extra={"maxLength": MAX_ID_CHARS})
    inputs: list[_Input] = Field(max_length=MAX_TENSORS)
    outputs: list[_Output] = Field([], max_length=MAX_TENSORS)
    parameters: dict[str, Any] = Field({}, max_length=MAX_TENSORS)
    model_name: str = Field("", max_length=MAX_ID_CHARS)  # some clients repeat the one of the path

    def wants_raw(self) -> bool:
        """Return True if the result is requested raw; an output overrides the request."""
        of_all = self.parameters.get("binary_data_output", False)
        if not isinstance(of_all, bool):
            problem = "the parameter binary_data_output must be true or false"
            raise InvalidRequest(problem, "binary_data_output")
        of_each = [output.parameters.binary_data for output in self.outputs]
        return any(of_all if wanted is None else wanted for wanted in of_each or [None])


class OpenInferenceError(_Json):
    """Body of an error response."""

    error: str


@dataclass(frozen=True, slots=True)
class InferBody:
    """Body of a response."""

    content: bytes
    json_length: int | None  # unset if the whole body is JSON


def read_request(body: bytes, json_length: str | None) -> InferRequest:
    """Read a request; `json_length` is the value of the header. Raise `InvalidRequest`."""
    start = len(body)
    if json_length is not None:
        is_number = json_length.isascii() and json_length.isdigit() and len(json_length) <= 15
        if not is_number or int(json_length) > len(body):
            given = f"Inference-Header-Content-Length is {shown(json_length)}"
            raise InvalidRequest(f"{given}; it must be at most the {len(body)} bytes of the body")
        start = int(json_length)
    document = validated(InferJson, json_object(body[:start]))
    inputs = []
    for each in document.inputs:
        size = each.parameters.binary_data_size
        data = each.content(body[start : start + (size or 0)])
        inputs.append(Tensor(each.name, each.datatype, tuple(each.shape), data))
        start += size or 0
    if start != len(body):
        raise InvalidRequest(f"the body has {len(body) - start} bytes after its last input")
    parameters = {
        name: value for name, value in document.parameters.items() if name != "binary_data_output"
    }
    outputs = tuple(output.name for output in document.outputs)
    return InferRequest(document.id, tuple(inputs), parameters, outputs, document.wants_raw())


def write_answer(answer: Answer, request: InferRequest, request_id: str) -> InferBody:
    """Return the body of an answer, its result raw or as JSON."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    raw = raw_result(answer, request_id) if request.wants_raw else b""
    output |= (
        {"parameters": {"binary_data_size": len(raw)}}
        if raw
        else {"data": [result_text(answer, request_id)]}
    )
    names = {
        "model_name": answer.model.id,
        "model_version": VERSION,
        "id": request.id or request_id,
    }
    document = json.dumps({**names, "outputs": [output]}).encode()
    return InferBody(document + raw, len(document) if raw else None)
