"""Values to and from the JSON of REST. Knows no connection."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar

from httpx_sse import ServerSentEvent

from diptych_client.errors import DiptychError, ErrorDetail, error_from
from diptych_client.geometry import ImageSize, RunLengthMask, parse_box, parse_quad, parse_ring
from diptych_client.requests import FieldValue
from diptych_client.results import (
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
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Tiles,
    Timings,
    Usage,
)
from diptych_client.retries import parse_retry_after_s

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


def form_values(fields_given: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: strings unchanged, everything else as JSON."""
    form = {}
    for name, value in fields_given.items():
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
    for each in body["answers"]:
        if "error" in each:
            answers.append(ModelFailure(each["model"], _value(ErrorDetail, each["error"])))
        else:
            answers.append(answer_from_json(each))
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


def _plain(value: Any) -> Any:
    """Return dataclasses as objects without unset options and the suffixes of coordinates."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if not is_dataclass(value):
        return value
    row = {}
    for each in fields(value):
        part = getattr(value, each.name)
        if part is not None or each.default is not None:
            row[_COORDINATES.sub("", each.name)] = _plain(part)
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
            found = (Detection(parse_box(row["box"]), row["label"], row["score"]) for row in rows)
            return DetectionsResult(tuple(found))
        case {"instances": rows}:
            return InstancesResult(tuple(map(_instance, rows)))
        case {"text_regions": rows}:
            regions = (
                TextRegion(parse_quad(row["quad"]), row["text"], row["score"]) for row in rows
            )
            return TextRegionsResult(tuple(regions))
    raise ValueError(f"the answer has no known kind of result, but {', '.join(body)}")


def _instance(row: Json) -> Instance:
    rings = row.get("polygons")
    polygons = None if rings is None else tuple(map(parse_ring, rings))
    runs = row.get("mask")
    mask = None if runs is None else RunLengthMask(tuple(runs["size"]), runs["counts"])
    return Instance(parse_box(row["box"]), row["label"], row["score"], polygons, mask)
