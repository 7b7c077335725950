"""Values of the API to and from the JSON of REST.

One rule converts all values, by the types of the dataclasses' fields. A field is named in JSON
without the suffix of coordinates: `box_xyxy` is `box`. An unset option has no field. A union is
parsed as its first member whose fields without a default are all there.
"""

import math
import re
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

ValueT = TypeVar("ValueT")

_COORDINATES = re.compile("_(xyxy|xy|hw)$")
_OUTCOME = "outcome"  # its fields are those of the object that has it


def to_json(value: Any) -> Any:
    """Return a value of the API, such as an answer, as the JSON of REST."""
    if isinstance(value, list | tuple):
        return [to_json(element) for element in value]
    if not is_dataclass(value):
        return value
    row: dict[str, Any] = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if field.name == _OUTCOME:
            row |= to_json(part)
        elif part is not None or field.default is not None:
            row[_COORDINATES.sub("", field.name)] = to_json(part)
    return row


def from_json(kind: type[ValueT], value: Any) -> ValueT:
    """Return the value of JSON, the inverse of `to_json`.

    A newer service may send more fields, an older one fewer of those with a default. Raise
    `ValueError`, `KeyError` or `TypeError` for other JSON.
    """
    parsed_value: ValueT = _parse(kind, value)
    return parsed_value


def _parse(kind: Any, value: Any) -> Any:
    members = get_args(kind)
    if is_dataclass(kind):
        return _parse_dataclass(kind, value)
    if get_origin(kind) is UnionType:
        return _parse_union(members, value)
    if get_origin(kind) is tuple:
        kinds = members[:1] * len(value) if members[-1] is ... else members
        return tuple(_parse(*element) for element in zip(kinds, value, strict=True))
    if kind is str and not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r:.100}")
    if kind is not float:
        return value
    if not math.isfinite(number := float(value)):
        raise ValueError(f"expected a finite number, got {number}")
    return number


def _parse_dataclass(kind: Any, value: Any) -> Any:
    arguments = {}
    for name, field_kind in _field_kinds(kind).items():
        key = _COORDINATES.sub("", name)
        if name == _OUTCOME:
            arguments[name] = _parse(field_kind, value)
        elif key in value:
            arguments[name] = _parse(field_kind, value[key])
    return kind(**arguments)


_field_kinds = cache(get_type_hints)


def _parse_union(members: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        return None
    for member in members:
        if member is not NoneType:
            with suppress(TypeError):  # a missing argument
                return _parse(member, value)
    raise ValueError(f"no known kind of value has the fields {', '.join(value)}")
