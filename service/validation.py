"""Pydantic's errors as one sentence: which field, the value that was given, what is allowed.

Settings, API keys and the fields of every interface are reported by it; the callers choose the exception.
"""

from dataclasses import dataclass

from pydantic import ValidationError

from tasks.errors import shown

_MAX_FIELD_CHARS = 80


@dataclass(frozen=True, slots=True)
class RejectedField:
    """The first field that failed validation."""

    name: str  # the path within the document, dotted; names of a client are cut and free of lone surrogates
    reason: str
    message: str


def rejected_field(error: ValidationError) -> RejectedField:
    """Return the first field that `error` rejects."""
    detail = error.errors()[0]
    path = ".".join(map(str, detail["loc"]))[:_MAX_FIELD_CHARS].encode(errors="replace").decode()
    path = path or "the document"
    message = (
        f"{path} is missing; it is required"
        if detail["type"] == "missing"
        else f"{path} is {shown(detail['input'])}: {detail['msg']}"
    )
    return RejectedField(path, detail["msg"], message)
