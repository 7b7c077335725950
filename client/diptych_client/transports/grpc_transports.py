"""gRPC: the messages and the errors of an attempt, for both kinds of clients.

Requests become messages of vision.proto, responses the JSON of REST.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from diptych_client.errors import (
    DiptychError,
    ErrorDetail,
    connection_failed,
    error_from,
    new_error,
    parse_retry_after_s,
)
from diptych_client.json_values import from_json
from diptych_client.requests import Request
from diptych_client.results import Answer
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.messages import Call, parsed

ResultT = TypeVar("ResultT")
MessageT = TypeVar("MessageT", bound=Message)

_UNSET_IF_EMPTY = ("labels", "view")  # repeated fields without presence, optional in JSON

_SERVICE = pb.DESCRIPTOR.services_by_name["Vision"]
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a mask of a large image is above the default of 4 MB
    # clients/caller.py sets the delays between attempts: a broken channel reconnects at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

# For calls that never reached the service, whose trailing metadata lacks `diptych-code`.
_CODE_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_request",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "payload_too_large",  # gRPC's own limit of a message
}


class GrpcChannel:
    """Starts calls on a channel of `grpc` or `grpc.aio`, which have the same functions."""

    _grpc: ClassVar[ModuleType]

    def __init__(self, address: str, api_key: str | None, is_secure: bool) -> None:
        if is_secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = self._grpc.secure_channel(address, credentials, _OPTIONS)
        else:
            self._channel = self._grpc.insecure_channel(address, _OPTIONS)
        self._key = () if api_key is None else (("authorization", f"Bearer {api_key}"),)

    def start(self, call: Call[Any], is_stream: bool = False) -> Any:
        """Return a response, or a stream's iterator; of `grpc.aio` an awaitable or async one."""
        name = call.operation.method + ("Stream" if is_stream else "")
        method = _SERVICE.methods_by_name[name]
        request_type = GetMessageClass(method.input_type)
        response_type = GetMessageClass(method.output_type)
        connect = self._channel.unary_stream if is_stream else self._channel.unary_unary
        path = f"/{_SERVICE.full_name}/{name}"
        stub = connect(path, request_type.SerializeToString, response_type.FromString)
        message = request_message(request_type, call.request)
        metadata = (("x-request-id", call.request_id), *self._key)
        return stub(message, timeout=call.remaining_s(), metadata=metadata)


def grpc_result(message: Any, call: Call[ResultT]) -> ResultT:
    return parsed(lambda reply: call.operation.parse(json_from_message(reply)), message, call)


@contextmanager
def status_errors(call: Call[Any]) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as caught:
        error: Any = caught
        trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
        raise error_from_status(error.code(), error.details() or "", trailing, call) from caught


def error_from_status(
    status: grpc.StatusCode, reason: str, trailing: Mapping[str, str], call: Call[Any]
) -> DiptychError:
    if "diptych-code" in trailing:
        param = trailing.get("diptych-param")
        request_id = trailing.get("x-request-id", call.request_id)
        detail = ErrorDetail(trailing["diptych-code"], reason, param, request_id)
        return error_from(detail, parse_retry_after_s(trailing.get("retry-after")))
    if status == grpc.StatusCode.UNAVAILABLE:
        return connection_failed(reason, call.request_id, call.url, call.operation.method)
    code = _CODE_OF_STATUS.get(status, "internal")
    message = f"the call failed with {status.name}: {reason}"
    return new_error(code, message, request_id=call.request_id)


def request_message(kind: type[MessageT], request: Request) -> MessageT:
    """Return a request as a message; raise `InvalidRequest`, also for the URL of an image."""
    if isinstance(request.image, str):
        reason = "image is a URL: only REST takes one, gRPC takes files"
        raise new_error("invalid_request", reason, "image")
    image = {} if request.image is None else {"image": request.image}
    try:
        return kind(**image, **request.fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise new_error("invalid_request", f"cannot send a field over gRPC: {error}") from error


def event_from_message(message: pb.PredictEvent) -> str | Answer:
    if message.WhichOneof("event") == "text":
        return message.text
    return from_json(Answer, json_from_message(message.answer))


def json_from_message(message: Any) -> Any:
    """Return a response, or a value of one, as the JSON of REST."""
    match message:
        case str() | int() | float():
            return message
        case pb.Point():
            return (message.x, message.y)
        case pb.Box():
            return (message.x1, message.y1, message.x2, message.y2)
        case pb.RunLengths():
            return {"size": (message.height, message.width), "counts": message.counts}
        case pb.Detections() | pb.Instances() | pb.TextRegions() | pb.Polygons() | pb.Ring():
            (name,) = message.DESCRIPTOR.fields_by_name
            return json_from_message(getattr(message, name))
        case pb.ListModelsResponse() | pb.ListTasksResponse():
            (name,) = message.DESCRIPTOR.fields_by_name
            return {"data": json_from_message(getattr(message, name))}
    if not isinstance(message, Message):
        return list(map(json_from_message, message))
    row: dict[str, Any] = {"param": None} if isinstance(message, pb.Error) else {}
    for field in message.DESCRIPTOR.fields:
        is_set = field.containing_oneof is None or message.HasField(field.name)
        is_unset_list = field.name in _UNSET_IF_EMPTY and not getattr(message, field.name)
        if is_set and not is_unset_list:
            row[field.name] = json_from_message(getattr(message, field.name))
    match message:
        case pb.Answer():
            kind = message.WhichOneof("result")
            row["result"] = {kind: row[kind]} if kind else {}
        case pb.ModelAnswer() | pb.StepAnswer():
            row |= row.pop("answer", {})
        case pb.Task():
            row["parameters"] = json.loads(message.parameters_json_schema)
    return row
