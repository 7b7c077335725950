"""Between the client's values and the messages of `service/proto/vision.proto`. Knows no connection."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from client.errors import DiptychError, ErrorDetail, connection_failed, deadline_exceeded, error_of
from client.requests import Request
from client.results import (
    Answer,
    BoxXyxy,
    Comparison,
    Detection,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    PointXy,
    Result,
    Ring,
    RunLengthMask,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Timings,
    Usage,
)
from client.retries import retry_after_s
from service.proto import vision_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
ValueT = TypeVar("ValueT")

# Of calls that ended before the service saw them, and so without `diptych-code`.
_CODE_OF_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_request",
    grpc.StatusCode.UNAUTHENTICATED: "unauthorized",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "payload_too_large",  # gRPC's own, of a message above the limit
}


def request_message(kind: type[MessageT], request: Request) -> MessageT:
    """Return the fields of a request as a message; one that the message lacks raises `AttributeError`."""
    message = kind() if request.image is None else kind(image=request.image)
    for name, value in request.fields.items():
        if isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def answer_from_message(message: pb.Answer) -> Answer:
    """Return one model's answer."""
    return Answer(
        id=message.id,
        model=message.model,
        task=message.task,
        result=_result(message),
        raw_text=message.raw_text,
        finish_reason="length" if message.finish_reason == "length" else "stop",
        image=_value(ImageSize, message.image),
        usage=_value(Usage, message.usage),
        vision_cache=message.vision_cache,  # type: ignore[arg-type]  # one of the three words of the contract
        timings_ms=_value(Timings, message.timings_ms),
    )


def event_from_message(message: pb.PredictEvent) -> str | Answer:
    """Return a piece of text, or the answer."""
    return message.text if message.WhichOneof("event") == "text" else answer_from_message(message.answer)


def comparison_from_message(message: pb.Comparison) -> Comparison:
    """Return what several models answered."""
    answers = tuple(
        ModelFailure(each.model, _error_detail(each.error))
        if each.WhichOneof("outcome") == "error"
        else answer_from_message(each.answer)
        for each in message.answers
    )
    return Comparison(message.id, message.task, _value(ImageSize, message.image), answers)


def models_from_message(message: pb.ListModelsResponse) -> tuple[Model, ...]:
    """Return the served models."""
    return tuple(_value(Model, model) for model in message.models)


def tasks_from_message(message: pb.ListTasksResponse) -> tuple[Task, ...]:
    """Return every task."""
    return tuple(
        Task(task.id, task.description, task.result, json.loads(task.parameters_json_schema), tuple(task.models))
        for task in message.tasks
    )


def error_from_call(
    status: grpc.StatusCode, details: str, trailing: Mapping[str, str], timeout_s: float, request_id: str
) -> DiptychError:
    """Return the error that the status of a call tells."""
    if "diptych-code" in trailing:
        wait_s = retry_after_s(trailing.get("retry-after"), datetime.now(UTC))
        id_there = trailing.get("x-request-id", request_id)
        return error_of(ErrorDetail(trailing["diptych-code"], details, trailing.get("diptych-param"), id_there), wait_s)
    if status == grpc.StatusCode.UNAVAILABLE:
        return connection_failed(details, request_id)
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded(timeout_s, request_id)
    message = f"the call ended with {status.name}: {details}"
    return error_of(ErrorDetail(_CODE_OF_STATUS.get(status, "internal"), message, None, request_id))


def _value(kind: type[ValueT], message: Message) -> ValueT:
    """Return a value from the fields of the same names; repeated ones as tuples."""
    values = {field.name: getattr(message, field.name) for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return kind(**{name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else tuple(value)


def _error_detail(error: pb.Error) -> ErrorDetail:
    return ErrorDetail(error.code, error.message, error.param if error.HasField("param") else None, error.request_id)


def _result(answer: pb.Answer) -> Result:
    match answer.WhichOneof("result"):
        case "text":
            return TextResult(answer.text)
        case "detections":
            found = answer.detections.detections
            return DetectionsResult(tuple(Detection(_box(d.box), d.label, d.score) for d in found))
        case "instances":
            return InstancesResult(tuple(map(_instance, answer.instances.instances)))
        case "text_regions":
            regions = answer.text_regions.text_regions
            return TextRegionsResult(tuple(TextRegion(_quad(r.quad), r.text, r.score) for r in regions))
    raise ValueError("a result of no known kind")


def _instance(message: pb.Instance) -> Instance:
    box, label, score = _box(message.box), message.label, message.score
    if message.WhichOneof("shape") == "mask":
        mask = message.mask
        return Instance(box, label, score, mask=RunLengthMask((mask.height, mask.width), mask.counts))
    return Instance(box, label, score, tuple(_ring(ring.points) for ring in message.polygons.rings))


def _box(box: pb.Box) -> BoxXyxy:
    return (box.x1, box.y1, box.x2, box.y2)


def _ring(points: Iterable[pb.Point]) -> Ring:
    return tuple((point.x, point.y) for point in points)


def _quad(points: Iterable[pb.Point]) -> tuple[PointXy, PointXy, PointXy, PointXy]:
    first, second, third, fourth = _ring(points)
    return (first, second, third, fourth)
