"""The calls of the API, and values to and from the JSON of REST. Knows no connection.

One rule converts all values, by the types of the dataclasses' fields. A field is named in JSON
without the suffix of coordinates: `box_xyxy` is `box`. An unset option has no field. Of a union the
member is meant whose fields without a default are all there.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message
from httpx_sse import ServerSentEvent

from diptych_client.errors import (
    DiptychError,
    ErrorDetail,
    connection_failed,
    error_from,
    new_error,
    parse_retry_after_s,
)
from diptych_client.requests import FieldValue, Request
from diptych_client.results import Analysis, Answer, Comparison, Model, Task
from diptych_client.transports import vision_pb2 as pb

ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT")
ValueT = TypeVar("ValueT")

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_MIN_TIMEOUT_S = 0.001  # a delay between retries may end late
_COORDINATES = re.compile("_(xyxy|xy|hw)$")
_OUTCOME = "outcome"  # its fields are those of the object that has it

# For responses without our JSON body: those of a proxy, or of the server before the service has
# started.
_CODE_OF_STATUS = {
    400: "invalid_request",
    401: "unauthorized",
    413: "payload_too_large",
    429: "overloaded",
    502: "connection_failed",
    503: "not_ready",
    504: "deadline_exceeded",
}


def to_json(value: Any) -> Any:
    """Return a value of the API, such as an answer, as the JSON of REST."""
    if isinstance(value, list | tuple):
        return list(map(to_json, value))
    if not is_dataclass(value):
        return value
    row: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if field.name == _OUTCOME:
            row |= to_json(part)
        elif part is not None or field.default is not None:
            row[_COORDINATES.sub("", field.name)] = to_json(part)
    return row


def from_json(kind: type[ValueT], value: Any) -> ValueT:
    """Return the value of JSON, the inverse of `to_json`.

    A newer service may send more fields, an older one fewer of those with a default. Raise
    `ValueError`, `KeyError` or `TypeError` for other JSON.
    """
    parsed_value: ValueT = _parsed(kind, value)
    return parsed_value


def _parsed(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        arguments = {}
        for name, key, field_kind in _fields(kind):
            if name == _OUTCOME:
                arguments[name] = _parsed(field_kind, value)
            elif key in value:
                arguments[name] = _parsed(field_kind, value[key])
        return kind(**arguments)
    members = get_args(kind)
    if get_origin(kind) is UnionType:
        return None if value is None else _parsed(_member(members, value), value)
    if get_origin(kind) is tuple:
        kinds = members[:1] * len(value) if members[-1] is ... else members
        pairs = zip(kinds, value, strict=True)
        return tuple(_parsed(element_kind, element) for element_kind, element in pairs)
    if kind is str and not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.100}")
    return float(value) if kind is float else value


@cache
def _fields(kind: Any) -> list[tuple[str, str, Any]]:
    """Return the name, the key in JSON and the type of each field."""
    names = [(field.name, _COORDINATES.sub("", field.name)) for field in fields(kind)]
    kinds = get_type_hints(kind)
    return [(name, key, kinds[name]) for name, key in names]


@cache
def _required(kind: Any) -> set[str]:
    defaults = {field.name: field.default for field in fields(kind)}
    return {key for name, key, _ in _fields(kind) if defaults[name] is MISSING}


def _member(members: tuple[Any, ...], value: Any) -> Any:
    for member in members:
        if is_dataclass(member) and isinstance(member, type):
            is_meant = _required(member) <= value.keys()
        else:
            is_meant = member is not NoneType
        if is_meant:
            return member
    raise ValueError(f"no known kind of value has the fields {', '.join(value)}")


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """One call of the API over both transports; its response's JSON is parsed for both."""

    path: str
    method: str
    request: type[Message]
    response: type[Message]
    parse: Callable[[Any], ResultT]
    verb: str = "GET"  # a call without an image


def _listed(kind: type[ValueT]) -> Callable[[Any], tuple[ValueT, ...]]:
    return lambda body: tuple(from_json(kind, row) for row in body["data"])


PREDICT: Operation[Answer] = Operation(
    "/v1/predict", "Predict", pb.PredictRequest, pb.Answer, partial(from_json, Answer)
)
COMPARE: Operation[Comparison] = Operation(
    "/v1/compare", "Compare", pb.CompareRequest, pb.Comparison, partial(from_json, Comparison)
)
ANALYZE: Operation[Analysis] = Operation(
    "/v1/analyze", "Analyze", pb.AnalyzeRequest, pb.Analysis, partial(from_json, Analysis)
)
# Images are stored over REST alone: the messages are not used.
STORE: Operation[str] = Operation(
    "/v1/images", "", pb.AnalyzeRequest, pb.Analysis, lambda body: str(body["id"])
)
MODELS: Operation[tuple[Model, ...]] = Operation(
    "/v1/models", "ListModels", pb.ListModelsRequest, pb.ListModelsResponse, _listed(Model)
)
TASKS: Operation[tuple[Task, ...]] = Operation(
    "/v1/tasks", "ListTasks", pb.ListTasksRequest, pb.ListTasksResponse, _listed(Task)
)


def removal(image_id: str) -> Operation[str]:
    return replace(STORE, path=f"/v1/images/{image_id}", verb="DELETE")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """A call with the id and the deadline that all its attempts share."""

    operation: Operation[ResultT]
    request: Request
    request_id: str
    deadline_s: float  # time.monotonic()
    url: str = ""  # the service, without credentials

    def remaining_s(self) -> float:
        return max(_MIN_TIMEOUT_S, self.deadline_s - time.monotonic())


def parsed(parse: Callable[[ResponseT], ValueT], response: ResponseT, call: Call[Any]) -> ValueT:
    """Return the parsed response; raise `InternalError` if it violates the API."""
    try:
        return parse(response)
    except _MALFORMED as error:
        message = f"cannot parse the response to {call.operation.method}: {error!r}"
        raise new_error("internal", message, request_id=call.request_id) from error


def check_stream_is_complete(last_event: str | Answer | None, call: Call[Answer]) -> None:
    """Raise `ConnectionFailed` if a stream ended without its answer."""
    if not isinstance(last_event, Answer):
        reason = "the stream ended before the answer"
        raise connection_failed(reason, call.request_id, call.url, call.operation.path)


def form_values(request_fields: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: strings unchanged, everything else as JSON."""
    form = {}
    for name, value in request_fields.items():
        form[name] = value if isinstance(value, str) else json.dumps(value)
    return form


def event_from_sse(event: ServerSentEvent) -> str | Answer:
    """Return a piece of raw text or the answer; raise the error of an error event."""
    data = json.loads(event.data)
    match event.event:
        case "token":
            return str(data["text"])
        case "result":
            return from_json(Answer, data)
    raise error_from(from_json(ErrorDetail, data["error"]))


def error_from_response(
    status: int, headers: Mapping[str, str], body: bytes, request_id: str, url: str = "the server"
) -> DiptychError:
    """Return the error of a failed response: from its JSON body, else from status and URL."""
    wait_s = parse_retry_after_s(headers.get("retry-after"))
    try:
        return error_from(from_json(ErrorDetail, json.loads(body)["error"]), wait_s)
    except _MALFORMED:
        code = _CODE_OF_STATUS.get(status, "internal")
        text = body[:200].decode(errors="replace")
        message = f"{url} responded with status {status}: {text}"
        return error_from(ErrorDetail(code, message, None, request_id), wait_s)
