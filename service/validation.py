"""Pydantic's errors as one sentence: field, given value, allowed values; and JSON strings.

Used for settings, API keys and the fields of every interface; callers choose the exception.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from service.errors import InvalidRequest
from tasks.errors import shown

_MAX_FIELD_CHARS = 80
# Schema of a field that may take up a whole body; the other fields have their own bounds.
BOUNDED_BY_BODY: dict[str, JsonValue] = {"x-bound": "DIPTYCH_MAX_BODY_BYTES"}

ModelT = TypeVar("ModelT", bound=BaseModel)


def in_one_line(schema: dict[str, Any]) -> None:
    """Join the lines of the descriptions of a model's fields, which are texts below them."""
    for field in schema.get("properties", {}).values():
        if "description" in field:
            field["description"] = " ".join(field["description"].split())


class StrictModel(BaseModel):
    """A client's document: an unknown field or another JSON type is refused."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra=in_one_line,
    )


@dataclass(frozen=True, slots=True)
class RejectedField:
    """The first field that failed validation."""

    # the path within the document, dotted; names of a client are cut and free of lone surrogates
    name: str
    reason: str
    message: str


def rejected_field(error: ValidationError, fields: Iterable[str] = ()) -> RejectedField:
    """Return the first field that `error` rejects; `fields` are the names that are allowed."""
    detail = error.errors(include_url=False, include_context=False)[0]
    path = _shown_path(".".join(map(str, detail["loc"]))) or "the document"
    reason = detail["msg"].removeprefix("Value error, ")  # before what our validators raise
    match detail["type"]:
        case "missing":
            message = f"{path} is missing; it is required"
        case "extra_forbidden":
            message = f"unknown field {shown(path)}"
            if fields and len(detail["loc"]) == 1:
                message += f"; the fields are {', '.join(fields)}"
        case _:
            message = f"{path} is {shown(detail['input'])}: {reason}"
    return RejectedField(path, reason, message)


def validated(model: type[ModelT], document: object) -> ModelT:
    """Return a client's document in its types; raise `InvalidRequest`."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        rejected = rejected_field(error, model.model_fields)
        raise InvalidRequest(rejected.message, rejected.name) from error


def lone_surrogate(document: object) -> str | None:
    r"""Return the dotted path of a string in a JSON value that cannot be encoded, or None.

    JSON can write half of a surrogate pair (`\ud800`): Python reads it, and fails when it writes
    the string.
    """
    pending: list[tuple[str, object]] = [("", document)]
    while pending:
        path, value = pending.pop()
        children: Iterable[tuple[object, object]] = ()
        if isinstance(value, dict):
            children = value.items()
        elif isinstance(value, list):
            children = enumerate(value)
        for name, child in children:
            if _is_broken(name) or _is_broken(child):
                return _path_of(path, name)
            if isinstance(child, dict | list):
                pending.append((_path_of(path, name), child))
    return None


def _is_broken(text: object) -> bool:
    if not isinstance(text, str) or text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _path_of(path: str, name: object) -> str:
    name = str(name)[:_MAX_FIELD_CHARS]
    return _shown_path(f"{path}.{name}" if path else name)


def _shown_path(path: str) -> str:
    return path[:_MAX_FIELD_CHARS].encode(errors="replace").decode()
