"""Between the client's values and the JSON of REST. Knows no connection."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from client.errors import DiptychError, ErrorDetail, error_of
from client.requests import FieldValue
from client.results import (
    Answer,
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

Json = Mapping[str, Any]
ValueT = TypeVar("ValueT")

# Of answers without the contract's body: a proxy's, or the server's before the service is there.
_CODE_OF_STATUS = {
    400: "invalid_request",
    401: "unauthorized",
    413: "payload_too_large",
    429: "overloaded",
    502: "connection_failed",
    503: "not_ready",
    504: "deadline_exceeded",
}


def form_of(fields_given: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: lists, numbers and claims as JSON, texts as they are."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields_given.items()}


def answer_from_json(body: Json) -> Answer:
    """Return one model's answer."""
    return Answer(
        id=body["id"],
        model=body["model"],
        task=body["task"],
        result=_result(body["result"]),
        raw_text=body["raw_text"],
        finish_reason=body["finish_reason"],
        image=_known(ImageSize, body["image"]),
        usage=_known(Usage, body["usage"]),
        vision_cache=body["vision_cache"],
        timings_ms=_known(Timings, body["timings_ms"]),
    )


def comparison_from_json(body: Json) -> Comparison:
    """Return what several models answered."""
    answers = tuple(
        ModelFailure(each["model"], _known(ErrorDetail, each["error"])) if "error" in each else answer_from_json(each)
        for each in body["answers"]
    )
    return Comparison(body["id"], body["task"], _known(ImageSize, body["image"]), answers)


def models_from_json(body: Json) -> tuple[Model, ...]:
    """Return the served models."""
    return tuple(
        _known(Model, row | {name: tuple(row[name]) for name in ("tasks", "features")}) for row in body["data"]
    )


def tasks_from_json(body: Json) -> tuple[Task, ...]:
    """Return every task."""
    return tuple(_known(Task, row | {"models": tuple(row["models"])}) for row in body["data"])


def error_from_response(status: int, headers: Mapping[str, str], body: bytes, request_id: str) -> DiptychError:
    """Return the error that an answer tells; that of its status where the body is not the contract's."""
    wait_s = retry_after_s(headers.get("retry-after"), datetime.now(UTC))
    try:
        return error_of(_known(ErrorDetail, json.loads(body)["error"]), wait_s)
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {status}: {body[:200].decode(errors='replace')}"
        return error_of(ErrorDetail(_CODE_OF_STATUS.get(status, "internal"), message, None, request_id), wait_s)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as REST writes it: what `answer_from_json` reads."""
    plain = {field.name: getattr(answer, field.name) for field in fields(answer)}
    values = {name: asdict(plain[name]) for name in ("image", "usage", "timings_ms")}
    return plain | values | {"result": _result_json(answer.result)}


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as REST writes it."""
    answers = [asdict(each) if isinstance(each, ModelFailure) else answer_json(each) for each in comparison.answers]
    image = asdict(comparison.image)
    return {"id": comparison.id, "task": comparison.task, "image": image, "answers": answers}


def _known(kind: type[ValueT], row: Json) -> ValueT:
    """Return the value with the fields that this client knows; a newer service may send more."""
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]  # a dataclass


def _result(body: Json) -> Result:
    match body:
        case {"text": str(text)}:
            return TextResult(text)
        case {"detections": rows}:
            return DetectionsResult(tuple(Detection(_box(row["box"]), row["label"], row["score"]) for row in rows))
        case {"instances": rows}:
            return InstancesResult(tuple(map(_instance, rows)))
        case {"text_regions": rows}:
            regions = (TextRegion(_quad(row["quad"]), row["text"], row["score"]) for row in rows)
            return TextRegionsResult(tuple(regions))
    raise ValueError(f"a result of no known kind: {', '.join(body)}")


def _instance(row: Json) -> Instance:
    polygons = tuple(_ring(ring) for ring in row["polygons"]) if "polygons" in row else None
    mask = RunLengthMask(tuple(row["mask"]["size"]), row["mask"]["counts"]) if "mask" in row else None
    return Instance(_box(row["box"]), row["label"], row["score"], polygons, mask)


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)


def _ring(points: Iterable[Sequence[float]]) -> Ring:
    return tuple((float(x), float(y)) for x, y in points)


def _quad(points: Iterable[Sequence[float]]) -> tuple[PointXy, PointXy, PointXy, PointXy]:
    first, second, third, fourth = _ring(points)
    return (first, second, third, fourth)


def _result_json(result: Result) -> dict[str, Any]:
    match result:
        case TextResult():
            return {"text": result.text}
        case DetectionsResult():
            rows = [{"box": list(d.box_xyxy), "label": d.label, "score": d.score} for d in result.detections]
            return {"detections": rows}
        case InstancesResult():
            return {"instances": [_instance_json(instance) for instance in result.instances]}
        case TextRegionsResult():
            regions = result.text_regions
            return {"text_regions": [{"quad": _lists(r.quad_xy), "text": r.text, "score": r.score} for r in regions]}


def _instance_json(instance: Instance) -> dict[str, Any]:
    row = {"box": list(instance.box_xyxy), "label": instance.label, "score": instance.score}
    if instance.mask is not None:
        return row | {"mask": {"size": list(instance.mask.size_hw), "counts": instance.mask.counts}}
    return row | {"polygons": [_lists(ring) for ring in instance.polygons_xy or ()]}


def _lists(points: Iterable[PointXy]) -> list[list[float]]:
    return [list(point) for point in points]
