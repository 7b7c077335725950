"""Pydantic's errors as one sentence: field, given value, allowed values.

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

    name: str  # the path within the document, dotted and cut
    reason: str
    message: str


def rejected_field(error: ValidationError, fields: Iterable[str] = ()) -> RejectedField:
    """Return the first field that `error` rejects; `fields` are the names that are allowed."""
    detail = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(map(str, detail["loc"]))[:_MAX_FIELD_CHARS] or "the document"
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
