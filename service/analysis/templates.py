"""`{label}` and `{text}` in the strings of a step, filled from an object of an earlier step.

The filled text is data: it is neither filled again nor read as control tokens.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import chain

from service.inference.request_fields import PARAMETERS
from tasks.parameter_kinds import TextListParameter, TextParameter
from tasks.table import ResultKind

# The names that the objects of each kind of result can fill.
NAMES_OF: Mapping[ResultKind, frozenset[str]] = {
    "text": frozenset(),
    "detections": frozenset({"label"}),
    "instances": frozenset({"label"}),
    "text_regions": frozenset({"text"}),
}
_NAME = re.compile(r"\{(label|text)\}")
_TEXT_FIELDS = frozenset(
    name
    for name, parameter in PARAMETERS.items()
    if isinstance(parameter, TextParameter | TextListParameter)
)


def used_names(fields: Mapping[str, object]) -> frozenset[str]:
    """Return the names that the strings of a step use."""
    return frozenset(chain.from_iterable(map(_NAME.findall, _texts(fields))))


def filled(fields: Mapping[str, object], values: Mapping[str, str]) -> dict[str, object]:
    """Return the fields with every used name replaced by its value."""

    def fill(value: object) -> object:
        if not isinstance(value, str):
            return value
        return _NAME.sub(lambda match: values[match[1]], value)

    document = dict(fields)
    for name in _TEXT_FIELDS & fields.keys():
        value = fields[name]
        document[name] = list(map(fill, value)) if isinstance(value, list) else fill(value)
    return document


def _texts(fields: Mapping[str, object]) -> Iterator[str]:
    for name in _TEXT_FIELDS & fields.keys():
        value = fields[name]
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield text
