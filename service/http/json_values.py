"""JSON of clients: bounded before it is parsed, without lone surrogates.

No step holds the interpreter's lock for more than some hundredths of a second.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence

from service.errors import InvalidRequest
from service.validation import lone_surrogate
from tasks.errors import shown

LARGE_BYTES = 250_000  # parsed in a thread: 20 MB of base64 take a tenth of a second
PIECE_BYTES = 500_000  # a multiple of 4, for base64
MAX_JSON_VALUES = 10_000  # elements of lists and objects; no task takes over 32 labels
_VALUE_MARKS = (b",", b"[", b"{")  # base64 has none of them, so that an image counts as one value
_MAX_COUNTED_VALUES = 1_000_000  # no reader allows more
_VALUE_BYTES = 100  # a small object of Python and its place in a list or dictionary
_WIDE_CHAR_BYTES = 4
# each is a piece of a string to the parser; base64 whose slashes are escaped has 1 in 64
_MAX_JSON_ESCAPES = 2_000_000
MAX_DIGITS = 1000
_MAX_LEVELS = 500  # Python's own limit is 1,000 in 3.11 and 10,000 in 3.13
# Never matches in an image: base64 has none of the leading characters, and no format begins with a
# digit after `base64,`.
_LONG_NUMBER = re.compile(rb"[\s:,\[][-+.0-9eE]{%d}" % (MAX_DIGITS + 1))
_MAX_ERROR_CHARS = 200  # a parser's message is cut here


def json_object(
    body: bytes, max_values: int = MAX_JSON_VALUES, max_nested: int | None = None
) -> dict[str, object]:
    """Return a JSON object with unique names and at most `max_values` values.

    Raise `InvalidRequest`.

    `max_nested`: how many of the values may be lists and objects.
    """
    if max_nested is not None and _num_occurrences(body, (b"[", b"{"), max_nested) > max_nested:
        raise InvalidRequest(f"the body has more than {max_nested} lists and objects")
    document = unchecked_object(body, max_values)
    if _has_wide_texts(body):
        check_texts(document)
    return document


def unchecked_object(body: bytes, max_values: int = MAX_JSON_VALUES) -> dict[str, object]:
    """Do the same, but for lone surrogates, which `check_texts` refuses."""
    document = json_value(body, "the body", max_values)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(document).__name__}")
    return document


def check_texts(document: object, param: str | None = None) -> None:
    """Raise `InvalidRequest` for a lone surrogate in a JSON value."""
    path = lone_surrogate({param: document} if param else document)
    if path is not None:
        raise InvalidRequest(
            f"{path} contains a lone surrogate, which is not a character", param or path
        )


def _has_wide_texts(data: bytes) -> bool:
    return not data.isascii() or b"\\u" in data


def json_value(data: bytes, subject: str, max_values: int, param: str | None = None) -> object:
    """Return a JSON value of bounded size; raise `InvalidRequest` about `subject`."""
    if _num_occurrences(data, _VALUE_MARKS, max_values) > max_values:
        raise InvalidRequest(
            f"{subject} has more than {max_values} values, lists and objects", param
        )
    if _num_occurrences(data, (b"\\",), _MAX_JSON_ESCAPES) > _MAX_JSON_ESCAPES:
        raise InvalidRequest(f"{subject} has more than {_MAX_JSON_ESCAPES} escapes", param)
    if _has_long_number(data):
        raise InvalidRequest(f"a number of {subject} has more than {MAX_DIGITS} characters", param)
    try:
        value: object = json.loads(
            data, parse_float=_float, parse_constant=refuse_constant, object_pairs_hook=_unique
        )
        if num_levels(value) > _MAX_LEVELS:
            raise ValueError(f"it has more than {_MAX_LEVELS} levels of lists and objects")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{subject} is not JSON: {cut(error)}", param) from error
    return value


def num_levels(value: object) -> int:
    """Return the number of levels of lists and objects in a JSON value."""
    depth = 0
    level = [value]
    while True:
        children: list[object] = []
        is_nested = False
        for parent in level:
            if isinstance(parent, dict | list):
                is_nested = True
                children += parent.values() if isinstance(parent, dict) else parent
        if not is_nested:
            return depth
        level = children
        depth += 1


def _num_occurrences(body: bytes, marks: Sequence[bytes], maximum: int) -> int:
    """Count up to about `maximum`, holding the interpreter's lock below a millisecond."""
    num_found = 0
    for start in range(0, len(body), PIECE_BYTES):
        num_found += sum(body.count(mark, start, start + PIECE_BYTES) for mark in marks)
        if num_found > maximum:
            break
    return num_found


def _has_long_number(body: bytes) -> bool:
    """Return True for a number that would hold the parser, and its lock, for long."""
    if len(body) <= LARGE_BYTES:
        return False
    pieces = (
        _LONG_NUMBER.search(body, at, at + PIECE_BYTES + MAX_DIGITS)
        for at in range(0, len(body), PIECE_BYTES)
    )
    return any(pieces) or _LONG_NUMBER.match(b" " + body[: MAX_DIGITS + 1]) is not None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) < len(pairs):
        ((name, count),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(name)} occurs {count} times; send it once")
    return document


def _float(text: str) -> float:
    """Parse a number where threads may switch: json holds its lock for 300,000 in 0.1 s."""
    return float(text)


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def parsed_bytes(body: bytes) -> int:
    """Return an upper bound of the memory that parsing a body takes in addition to the body.

    A string with one character beyond Latin-1 has two or four bytes for each; an image is also
    decoded from base64.
    """
    is_wide = _has_wide_texts(body)
    num_values = _num_occurrences(body, _VALUE_MARKS, _MAX_COUNTED_VALUES)
    return len(body) * (_WIDE_CHAR_BYTES if is_wide else 2) + num_values * _VALUE_BYTES


def cut(error: Exception) -> str:
    """Return the message of a parser, cut."""
    return str(error)[:_MAX_ERROR_CHARS]
