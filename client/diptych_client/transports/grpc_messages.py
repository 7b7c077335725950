"""Requests to messages of vision.proto, responses to the JSON of REST. Knows no connection."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from diptych_client.errors import (
    DiptychError,
    ErrorDetail,
    connection_failed,
    deadline_exceeded,
    error_from,
)
from diptych_client.requests import Request
from diptych_client.results import Answer
from diptych_client.retries import parse_retry_after_s
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.rest_messages import answer_from_json

MessageT = TypeVar("MessageT", bound=Message)

# For calls that never reached the service, whose trailing metadata lacks `diptych-code`.
_CODE_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_request",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "payload_too_large",  # gRPC's own limit of a message
}


def request_message(kind: type[MessageT], request: Request) -> MessageT:
    """Return a request as a message; raise `InvalidRequest` for an image URL, which only REST has.

    Raise `AttributeError` for a field that the message lacks.
    """
    if isinstance(request.image, str):
        reason = "image is a URL: only REST takes one, gRPC takes files"
        raise error_from(ErrorDetail("invalid_request", reason, "image", ""))
    message = kind() if request.image is None else kind(image=request.image)
    for name, value in request.fields.items():
        if name == "steps" and isinstance(value, tuple):
            message.MergeFrom(kind(steps=value))
        elif isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def event_from_message(message: pb.PredictEvent) -> str | Answer:
    if message.WhichOneof("event") == "text":
        return message.text
    return answer_from_json(json_from_message(message.answer))


def json_from_message(message: Any) -> Any:
    """Return a response, or a value of one, as the JSON of REST; unset optional fields are None."""
    match message:
        case str() | int() | float():
            return message
        case pb.Point():
            return (message.x, message.y)
        case pb.Ring():
            return [(point.x, point.y) for point in message.points]
        case pb.Box():
            return (message.x1, message.y1, message.x2, message.y2)
        case pb.RunLengths():
            return {"size": (message.height, message.width), "counts": message.counts}
        case pb.ModelAnswer() if message.WhichOneof("outcome") != "error":
            return json_from_message(message.answer)
        case pb.StepAnswer():
            return _step_answer(message)
    if not isinstance(message, Message):
        return [json_from_message(each) for each in message]
    row: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        is_set = field.containing_oneof is None or message.HasField(field.name)
        row[field.name] = json_from_message(getattr(message, field.name)) if is_set else None
    match message:
        case pb.Answer():
            kind = message.WhichOneof("result")
            return row | {"result": {kind: row[kind]} if kind else {}}
        case pb.Detections() | pb.Instances() | pb.TextRegions() | pb.Polygons():
            (items,) = row.values()
            return items
        case pb.ListModelsResponse() | pb.ListTasksResponse():
            (items,) = row.values()
            return {"data": items}
        case pb.Task():
            return row | {"parameters": json.loads(message.parameters_json_schema)}
    return row


def _step_answer(message: pb.StepAnswer) -> dict[str, Any]:
    row: dict[str, Any] = {"model": message.model}
    if message.WhichOneof("outcome") == "error":
        row["error"] = json_from_message(message.error)
    else:
        row = json_from_message(message.answer)
    if message.HasField("of"):
        row["of"] = message.of
    if message.view:
        row["view"] = list(message.view)
    return row


def error_from_call(
    status: grpc.StatusCode,
    details: str,
    trailing: Mapping[str, str],
    timeout_s: float,
    request_id: str,
    url: str = "",
    method: str = "",
) -> DiptychError:
    """Return the error from the trailing metadata if the service sent it, else from the status."""
    if "diptych-code" in trailing:
        wait_s = parse_retry_after_s(trailing.get("retry-after"), datetime.now(UTC))
        param = trailing.get("diptych-param")
        own_id = trailing.get("x-request-id", request_id)
        return error_from(ErrorDetail(trailing["diptych-code"], details, param, own_id), wait_s)
    if status == grpc.StatusCode.UNAVAILABLE:
        return connection_failed(details, request_id, url, method)
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded(timeout_s, request_id)
    code = _CODE_OF_STATUS.get(status, "internal")
    message = f"the call failed with {status.name}: {details}"
    return error_from(ErrorDetail(code, message, None, request_id))
