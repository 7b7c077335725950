"""Values to and from the JSON of REST. Knows no connection."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

from httpx_sse import ServerSentEvent

from diptych_client.errors import DiptychError, ErrorDetail, error_from, parse_retry_after_s
from diptych_client.geometry import ImageSize, RunLengthMask, parse_box, parse_quad, parse_ring
from diptych_client.requests import FieldValue
from diptych_client.results import (
    Analysis,
    Answer,
    Comparison,
    Detection,
    DetectionsResult,
    Guarantee,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    Result,
    StepAnswer,
    StepAnswers,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Tiles,
    Timings,
    Usage,
)

Json = Mapping[str, Any]
ValueT = TypeVar("ValueT")

_COORDINATES = re.compile("_(xyxy|xy|hw)$")  # field names such as `box_xyxy`

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


def form_values(request_fields: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: strings unchanged, everything else as JSON."""
    form = {}
    for name, value in request_fields.items():
        form[name] = value if isinstance(value, str) else json.dumps(value)
    return form


def answer_from_json(body: Json) -> Answer:
    parts: dict[str, Any] = {
        "result": _result(body["result"]),
        "image": _value(ImageSize, body["image"]),
        "usage": _value(Usage, body["usage"]),
        "timings_ms": _value(Timings, body["timings_ms"]),
    }
    if tiles := body.get("tiles"):
        parts["tiles"] = _value(Tiles, tiles)
    if guarantee := body.get("guarantee"):
        parts["guarantee"] = _value(Guarantee, guarantee)
    labels = tuple(body.get("labels") or ()) or None
    # answers stored by an earlier client lack `calibrated`
    return _value(Answer, {"calibrated": False, **body, **parts, "labels": labels})


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
    answers: list[Answer | ModelFailure] = []
    for row in body["answers"]:
        if "error" in row:
            answers.append(ModelFailure(row["model"], _value(ErrorDetail, row["error"])))
        else:
            answers.append(answer_from_json(row))
    return Comparison(body["id"], body["task"], _value(ImageSize, body["image"]), tuple(answers))


def models_from_json(body: Json) -> tuple[Model, ...]:
    return tuple(_value(Model, row) for row in body["data"])


def tasks_from_json(body: Json) -> tuple[Task, ...]:
    return tuple(_value(Task, row) for row in body["data"])


def error_from_response(
    status: int, headers: Mapping[str, str], body: bytes, request_id: str, url: str = "the server"
) -> DiptychError:
    """Return the error of a failed response: from its JSON body, else from status and URL."""
    wait_s = parse_retry_after_s(headers.get("retry-after"), datetime.now(UTC))
    try:
        return error_from(_value(ErrorDetail, json.loads(body)["error"]), wait_s)
    except (ValueError, KeyError, TypeError, RecursionError):
        code = _CODE_OF_STATUS.get(status, "internal")
        text = body[:200].decode(errors="replace")
        message = f"{url} responded with status {status}: {text}"
        if status == HTTPStatus.NOT_FOUND:
            message += "; is this the URL of a Diptych service?"
        return error_from(ErrorDetail(code, message, None, request_id), wait_s)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as the JSON of REST, the inverse of `answer_from_json`."""
    row: dict[str, Any] = _plain(answer)
    return row


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as the JSON of REST."""
    row: dict[str, Any] = _plain(comparison)
    return row


def analysis_from_json(body: Json) -> Analysis:
    image = ImageSize(body["image"]["width"], body["image"]["height"])
    return Analysis(body["id"], image, tuple(map(_step, body["steps"])))


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as the JSON of REST, the inverse of `analysis_from_json`."""
    steps: list[dict[str, Any]] = []
    for step in analysis.steps:
        answers: list[dict[str, Any]] = []
        for answer in step.answers:
            row: dict[str, Any] = {}
            if answer.of is not None:
                row["of"] = answer.of
            if answer.view_xyxy is not None:
                row["view"] = answer.view_xyxy
            outcome = answer.outcome
            if isinstance(outcome, ModelFailure):
                answers.append({**row, "model": outcome.model, "error": asdict(outcome.error)})
            else:
                answers.append(row | answer_json(outcome))
        head = {"id": step.id, "task": step.task, "truncated": step.truncated}
        steps.append({**head, "answers": answers})
    return {"id": analysis.id, "image": asdict(analysis.image), "steps": steps}


def stored_id(body: Json) -> str:
    """Return the id of a stored image."""
    image_id: str = body["id"]
    return image_id


def _step(row: Json) -> StepAnswers:
    return StepAnswers(
        row["id"], row["task"], row["truncated"], tuple(map(_step_answer, row["answers"]))
    )


def _step_answer(row: Json) -> StepAnswer:
    view = row.get("view")
    place = (row.get("of"), None if view is None else tuple(view))
    if "error" in row:
        error = row["error"]
        detail = ErrorDetail(error["code"], error["message"], error["param"], error["request_id"])
        return StepAnswer(ModelFailure(row["model"], detail), *place)
    return StepAnswer(answer_from_json(row), *place)


def _plain(value: Any) -> Any:
    """Return dataclasses as objects without unset options and the suffixes of coordinates."""
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    if not is_dataclass(value):
        return value
    row = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if part is not None or field.default is not None:
            row[_COORDINATES.sub("", field.name)] = _plain(part)
    return row


def _value(kind: type[ValueT], row: Json) -> ValueT:
    """Return a dataclass, lists as tuples; a newer service may send more fields, an older one
    fewer of those with a default.
    """
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if field.name not in row and field.default is not MISSING:
            continue
        value = row[field.name]
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _result(body: Json) -> Result:
    match body:
        case {"text": str(text)}:
            return TextResult(text)
        case {"detections": rows}:
            return DetectionsResult(tuple(map(_detection, rows)))
        case {"instances": rows}:
            return InstancesResult(tuple(map(_instance, rows)))
        case {"text_regions": rows}:
            return TextRegionsResult(tuple(map(_text_region, rows)))
    raise ValueError(f"the answer has no known kind of result, but {', '.join(body)}")


def _detection(row: Json) -> Detection:
    return Detection(parse_box(row["box"]), row["label"], row["score"])


def _text_region(row: Json) -> TextRegion:
    return TextRegion(parse_quad(row["quad"]), row["text"], row["score"])


def _instance(row: Json) -> Instance:
    rings = row.get("polygons")
    polygons = None if rings is None else tuple(map(parse_ring, rings))
    runs = row.get("mask")
    mask = None if runs is None else RunLengthMask(tuple(runs["size"]), runs["counts"])
    return Instance(parse_box(row["box"]), row["label"], row["score"], polygons, mask)
