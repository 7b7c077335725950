"""The parts of a multipart/form-data body that is in memory (RFC 7578, RFC 2046 section 5.1.1).

A boundary is searched, not parsed byte by byte: a part costs a few microseconds. Values are UTF-8,
else Latin-1, whatever charset a client names.
"""

from functools import lru_cache

from python_multipart.multipart import parse_options_header

from service.errors import InvalidRequest

MAX_FIELDS = 200
_MAX_HEAD_BYTES = 8_000  # a part's headers, or what is before the first boundary
_MAX_BOUNDARY_CHARS = 250
_MAX_HEADERS = 8
_LINE = b"\r\n"

Value = str | bytes  # the text of a field, or the content of a file


def form_values(body: bytes, content_type: str, max_files: int) -> dict[str, list[Value]]:
    """Return the values of each field, in the order sent; raise `InvalidRequest`."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY_CHARS:
        allowed = f"a boundary of 1 to {_MAX_BOUNDARY_CHARS} characters"
        raise _malformed(f"its Content-Type must name {allowed}, not {len(boundary)}")
    delimiter = b"--" + boundary
    position = body.find(delimiter, 0, _MAX_HEAD_BYTES)
    if position < 0 or body[:position].strip(_LINE):
        raise _malformed("it does not begin with its boundary")
    position += len(delimiter)
    delimiter = _LINE + delimiter
    values: dict[str, list[Value]] = {}
    num_files = 0
    num_fields = 0
    while not body.startswith(b"--", position):
        start = body.find(_LINE * 2, position, position + _MAX_HEAD_BYTES)
        if not body.startswith(_LINE, position) or start < 0:
            raise _malformed("the headers of a part do not end, or do not begin on a new line")
        name, is_file = _name(body[position + 2 : start])
        start += 4
        end = body.find(delimiter, start)
        if end < 0:
            raise _malformed("it is truncated, its closing boundary is missing")
        num_files += is_file
        num_fields += not is_file
        if num_files > max_files or num_fields > MAX_FIELDS:
            found = f"more than {max_files} files or {MAX_FIELDS} fields"
            raise _malformed(f"it has {found}, which are the maximum")
        content = body[start:end]
        values.setdefault(name, []).append(content if is_file else _text(content))
        position = end + len(delimiter)
    return values


@lru_cache
def _name(head: bytes) -> tuple[str, bool]:
    """Return the name in the headers of a part, and True for a file."""
    disposition = b""
    lines = head.split(_LINE)
    for line in lines:
        field, colon, value = line.partition(b":")
        if not colon or len(lines) > _MAX_HEADERS:
            raise _malformed(f"a part must have 1 to {_MAX_HEADERS} headers of a name and a value")
        if field.lower() == b"content-disposition":
            disposition = value.strip()
    options = parse_options_header(disposition)[1]
    if b"name" not in options:
        raise _malformed("a part must have a Content-Disposition with a name")
    return _text(options[b"name"]), b"filename" in options


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _malformed(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the multipart body is malformed: {problem}")
