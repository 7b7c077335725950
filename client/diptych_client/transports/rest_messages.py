"""Values to and from the JSON of REST. Knows no connection."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from httpx_sse import ServerSentEvent

from diptych_client.errors import DiptychError, ErrorDetail, error_from
from diptych_client.geometry import BoxXyxy, ImageSize, PointXy, QuadXy, Ring, RunLengthMask
from diptych_client.requests import FieldValue
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

Json = Mapping[str, Any]
ValueT = TypeVar("ValueT")

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


def form_values(fields_given: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: strings unchanged, everything else as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields_given.items()
    }


def answer_from_json(body: Json) -> Answer:
    return Answer(
        id=body["id"],
        model=body["model"],
        task=body["task"],
        result=_result(body["result"]),
        raw_text=body["raw_text"],
        finish_reason=body["finish_reason"],
        image=_value(ImageSize, body["image"]),
        usage=_value(Usage, body["usage"]),
        vision_cache=body["vision_cache"],
        timings_ms=_value(Timings, body["timings_ms"]),
        calibrated=body.get("calibrated", False),  # answers stored by an earlier client have none
    )


def event_from_sse(event: ServerSentEvent) -> str | Answer:
    """Return a piece of raw text or the answer; raise the error of an error event."""
    data = json.loads(event.data)
    match event.event:
        case "token":
            text: str = data["text"]
            return text
        case "result":
            return answer_from_json(data)
    raise error_from(_value(ErrorDetail, data["error"]))


def comparison_from_json(body: Json) -> Comparison:
    answers = tuple(
        ModelFailure(each["model"], _value(ErrorDetail, each["error"]))
        if "error" in each
        else answer_from_json(each)
        for each in body["answers"]
    )
    return Comparison(body["id"], body["task"], _value(ImageSize, body["image"]), answers)


def models_from_json(body: Json) -> tuple[Model, ...]:
    lists = ("tasks", "features", "calibrated_tasks")
    return tuple(
        _value(Model, row | {name: tuple(row[name]) for name in lists}) for row in body["data"]
    )


def tasks_from_json(body: Json) -> tuple[Task, ...]:
    return tuple(_value(Task, row | {"models": tuple(row["models"])}) for row in body["data"])


def error_from_response(
    status: int, headers: Mapping[str, str], body: bytes, request_id: str
) -> DiptychError:
    """Return the error of a failed response: from its JSON body, else from its status."""
    wait_s = parse_retry_after_s(headers.get("retry-after"), datetime.now(UTC))
    try:
        return error_from(_value(ErrorDetail, json.loads(body)["error"]), wait_s)
    except (ValueError, KeyError, TypeError, RecursionError):
        message = (
            f"the server responded with status {status}: {body[:200].decode(errors='replace')}"
        )
        return error_from(
            ErrorDetail(_CODE_OF_STATUS.get(status, "internal"), message, None, request_id), wait_s
        )


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as the JSON of REST, the inverse of `answer_from_json`."""
    plain = {field.name: getattr(answer, field.name) for field in fields(answer)}
    values = {name: asdict(plain[name]) for name in ("image", "usage", "timings_ms")}
    return plain | values | {"result": _result_json(answer.result)}


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as the JSON of REST."""
    answers = [
        asdict(each) if isinstance(each, ModelFailure) else answer_json(each)
        for each in comparison.answers
    ]
    image = asdict(comparison.image)
    return {"id": comparison.id, "task": comparison.task, "image": image, "answers": answers}


def _value(kind: type[ValueT], row: Json) -> ValueT:
    """Return a dataclass from the fields of the same names; a newer service may send more."""
    # a dataclass
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _result(body: Json) -> Result:
    match body:
        case {"text": str(text)}:
            return TextResult(text)
        case {"detections": rows}:
            return DetectionsResult(
                tuple(Detection(_box(row["box"]), row["label"], row["score"]) for row in rows)
            )
        case {"instances": rows}:
            return InstancesResult(tuple(map(_instance, rows)))
        case {"text_regions": rows}:
            regions = (TextRegion(_quad(row["quad"]), row["text"], row["score"]) for row in rows)
            return TextRegionsResult(tuple(regions))
    raise ValueError(f"the answer has no known kind of result, but {', '.join(body)}")


def _instance(row: Json) -> Instance:
    polygons = tuple(_ring(ring) for ring in row["polygons"]) if "polygons" in row else None
    mask = (
        RunLengthMask(tuple(row["mask"]["size"]), row["mask"]["counts"]) if "mask" in row else None
    )
    return Instance(_box(row["box"]), row["label"], row["score"], polygons, mask)


def _box(values: Sequence[float]) -> BoxXyxy:
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)


def _ring(points: Iterable[Sequence[float]]) -> Ring:
    return tuple((float(x), float(y)) for x, y in points)


def _quad(points: Iterable[Sequence[float]]) -> QuadXy:
    first, second, third, fourth = _ring(points)
    return (first, second, third, fourth)


def _result_json(result: Result) -> dict[str, Any]:
    match result:
        case TextResult():
            return {"text": result.text}
        case DetectionsResult():
            rows = [
                {"box": list(d.box_xyxy), "label": d.label, "score": d.score}
                for d in result.detections
            ]
            return {"detections": rows}
        case InstancesResult():
            return {"instances": [_instance_json(instance) for instance in result.instances]}
        case TextRegionsResult():
            regions = result.text_regions
            return {
                "text_regions": [
                    {"quad": _lists(r.quad_xy), "text": r.text, "score": r.score} for r in regions
                ]
            }


def _instance_json(instance: Instance) -> dict[str, Any]:
    row = {"box": list(instance.box_xyxy), "label": instance.label, "score": instance.score}
    if instance.mask is not None:
        return row | {"mask": {"size": list(instance.mask.size_hw), "counts": instance.mask.counts}}
    return row | {"polygons": [_lists(ring) for ring in instance.polygons_xy or ()]}


def _lists(points: Iterable[PointXy]) -> list[list[float]]:
    return [list(point) for point in points]
