"""Values to and from the messages of `service/rpc/proto/vision.proto`. Knows no connection."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
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
from diptych_client.geometry import BoxXyxy, ImageSize, QuadXy, Ring, RunLengthMask
from diptych_client.requests import Request
from diptych_client.results import (
    Answer,
    Comparison,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    Result,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Timings,
    Usage,
)
from diptych_client.retries import parse_retry_after_s
from diptych_client.transports import vision_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
ValueT = TypeVar("ValueT")

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
        raise error_from(
            ErrorDetail(
                "invalid_request",
                "image is a URL: only REST takes one, gRPC takes files",
                "image",
                "",
            )
        )
    message = kind() if request.image is None else kind(image=request.image)
    for name, value in request.fields.items():
        if isinstance(value, tuple):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def answer_from_message(message: pb.Answer) -> Answer:
    return Answer(
        id=message.id,
        model=message.model,
        task=message.task,
        result=_result(message),
        raw_text=message.raw_text,
        finish_reason="length" if message.finish_reason == "length" else "stop",
        image=_value(ImageSize, message.image),
        usage=_value(Usage, message.usage),
        vision_cache=message.vision_cache,  # type: ignore[arg-type]  # hit, miss or joined
        timings_ms=_value(Timings, message.timings_ms),
        calibrated=message.calibrated,
    )


def event_from_message(message: pb.PredictEvent) -> str | Answer:
    return (
        message.text
        if message.WhichOneof("event") == "text"
        else answer_from_message(message.answer)
    )


def comparison_from_message(message: pb.Comparison) -> Comparison:
    answers = tuple(
        ModelFailure(each.model, _error_detail(each.error))
        if each.WhichOneof("outcome") == "error"
        else answer_from_message(each.answer)
        for each in message.answers
    )
    return Comparison(message.id, message.task, _value(ImageSize, message.image), answers)


def models_from_message(message: pb.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(_value(Model, model) for model in message.models)


def tasks_from_message(message: pb.ListTasksResponse) -> tuple[Task, ...]:
    return tuple(
        Task(
            task.id,
            task.description,
            task.result,
            json.loads(task.parameters_json_schema),
            tuple(task.models),
        )
        for task in message.tasks
    )


def error_from_call(
    status: grpc.StatusCode,
    details: str,
    trailing: Mapping[str, str],
    timeout_s: float,
    request_id: str,
) -> DiptychError:
    """Return the error of a failed call: from its trailing metadata if the service sent it, else
    from its status.
    """
    if "diptych-code" in trailing:
        wait_s = parse_retry_after_s(trailing.get("retry-after"), datetime.now(UTC))
        code = trailing["diptych-code"]
        param = trailing.get("diptych-param")
        return error_from(
            ErrorDetail(code, details, param, trailing.get("x-request-id", request_id)), wait_s
        )
    if status == grpc.StatusCode.UNAVAILABLE:
        return connection_failed(details, request_id)
    if status == grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded(timeout_s, request_id)
    message = f"the call failed with {status.name}: {details}"
    return error_from(
        ErrorDetail(_CODE_OF_STATUS.get(status, "internal"), message, None, request_id)
    )


def _value(kind: type[ValueT], message: Message) -> ValueT:
    """Return a dataclass from the fields of the same names; repeated fields as tuples, unset
    optional ones as None.
    """
    # a dataclass
    return kind(**{field.name: _field(message, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _field(message: Message, name: str) -> Any:
    is_unset = message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name)
    return None if is_unset else _plain(getattr(message, name))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else tuple(value)


def _error_detail(error: pb.Error) -> ErrorDetail:
    return ErrorDetail(
        error.code,
        error.message,
        error.param if error.HasField("param") else None,
        error.request_id,
    )


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
            return TextRegionsResult(
                tuple(TextRegion(_quad(r.quad), r.text, r.score) for r in regions)
            )
    raise ValueError("the answer has no known kind of result")


def _instance(message: pb.Instance) -> Instance:
    box = _box(message.box)
    label = message.label
    score = message.score
    if message.WhichOneof("shape") == "mask":
        mask = message.mask
        return Instance(
            box, label, score, mask=RunLengthMask((mask.height, mask.width), mask.counts)
        )
    return Instance(box, label, score, tuple(_ring(ring.points) for ring in message.polygons.rings))


def _box(box: pb.Box) -> BoxXyxy:
    return (box.x1, box.y1, box.x2, box.y2)


def _ring(points: Iterable[pb.Point]) -> Ring:
    return tuple((point.x, point.y) for point in points)


def _quad(points: Iterable[pb.Point]) -> QuadXy:
    first, second, third, fourth = _ring(points)
    return (first, second, third, fourth)
