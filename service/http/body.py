"""Request bodies to an image and fields: forms and JSON, limited while they stream.

Values of a form are text; each becomes the JSON type of its field in a JSON body. No step of
reading a large body holds the interpreter's lock, or the event loop, for more than some hundredths
of a second.
"""

import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.analysis.several import MAX_IMAGES
from service.errors import InvalidRequest, PayloadTooLarge, UnsupportedImage
from service.http.json_values import (
    LARGE_BYTES,
    MAX_DIGITS,
    MAX_JSON_VALUES,
    PIECE_BYTES,
    check_texts,
    json_object,
    json_value,
    parsed_bytes,
    refuse_constant,
)
from service.images.decoding import in_thread
from service.images.handle_ids import ID_CHARS, PREFIX, ImageHandle
from service.images.url_rules import ImageInput, ImageUrl
from service.inference.request_fields import PARAMETERS, CompareFields, PredictFields
from tasks.errors import shown

_LARGE_PARSED_BYTES = 2 * LARGE_BYTES  # size of a parsed body; many small values take long, too
_FORM = "multipart/form-data"
_JSON = "application/json"
_FORM_COPIES = 2  # the body and its parts
_MAX_FIELDS = 200  # parts of a form without a file
_MAX_HEAD_BYTES = 8_000  # a part's headers, or what is before the first boundary
_MAX_BOUNDARY_CHARS = 250
_MAX_PART_HEADERS = 8
_LINE = b"\r\n"
_MAX_NAME_CHARS = 80  # a field's name in messages is cut here
# Bounded, as base64 looks like a scheme: 20 MB of it held the interpreter's lock for 0.2 s.
_SCHEME = re.compile(r"\s{0,100}([A-Za-z][A-Za-z0-9+.-]{0,100}):")
# Quoted, or without a comma; each character is read once.
_ELEMENT = re.compile(r'\s{0,100}(?:"([^"]*)"[^,]*|([^,]+))')
_BOOLEANS = {"true": True, "false": False}

FormValue = str | bytes  # the text of a field, or the content of a file
ParsedT = TypeVar("ParsedT")
_SCHEMAS: dict[str, dict[str, Any]] = {
    **PredictFields.model_json_schema()["properties"],
    **CompareFields.model_json_schema()["properties"],
    **{name: parameter.json_schema() for name, parameter in PARAMETERS.items()},
    "steps": {"type": "array", "items": {"type": "object"}},
}
# the JSON type of each field of every endpoint
_TYPES = {name: schema.get("anyOf", [schema])[0] for name, schema in _SCHEMAS.items()}


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The image, as encoded bytes or a URL, and the other fields in JSON types."""

    image: ImageInput  # the first, if there are several
    fields: Mapping[str, object]
    images: Sequence[ImageInput] | None = None  # a request about several


@dataclass(frozen=True, slots=True)
class BodyMemory:
    """The memory for one body: at most `max_bytes` as it is sent.

    Readers raise `PayloadTooLarge` above that, and `Overloaded` where `hold` does.
    """

    max_bytes: int
    # counts bytes of the body, and of what is parsed of it, until the request ends
    hold: Callable[[int], None]


async def read_body(
    request: Request, memory: BodyMemory, max_images: int | None = None
) -> RequestBody:
    """Read a multipart or JSON body; raise `InvalidRequest` or `UnsupportedImage`.

    With `max_images` it may have so many `images` in place of `image`.
    """
    content_type = _content_type(request, _FORM, _JSON)
    if content_type == _FORM:
        body = await read_bytes(request, memory, _FORM_COPIES)
        return await _from_form(request.headers["content-type"], body, max_images)

    def from_json(body: bytes) -> RequestBody:
        document = json_object(body)
        if max_images is not None and "image" not in document and "images" in document:
            given = document.pop("images")
            if not isinstance(given, list) or not 1 <= len(given) <= max_images:
                found = f"{len(given)} images" if isinstance(given, list) else shown(given)
                message = f"images must be a list of 1 to {max_images} images, not {found}"
                raise InvalidRequest(message, "images")
            images = list(map(parse_image, given))
            return RequestBody(images[0], document, images)
        if "image" not in document:
            raise missing_image()
        return RequestBody(parse_image(document.pop("image")), document)

    return await parsed(from_json, await read_bytes(request, memory), memory)


read_images_body = partial(read_body, max_images=MAX_IMAGES)


async def read_json(request: Request, memory: BodyMemory) -> dict[str, object]:
    """Read a body that is a JSON object; raise `InvalidRequest`."""
    _content_type(request, _JSON)
    return await parsed(json_object, await read_bytes(request, memory), memory)


async def parsed(parse: Callable[[bytes], ParsedT], body: bytes, memory: BodyMemory) -> ParsedT:
    """Return `parse(body)`, computed in a thread if the body is large; hold what it takes."""
    num_bytes = await off_loop(parsed_bytes, body)
    memory.hold(num_bytes)
    return await in_thread(parse, body) if num_bytes > _LARGE_PARSED_BYTES else parse(body)


async def off_loop(function: Callable[[bytes], ParsedT], body: bytes) -> ParsedT:
    """Return `function(body)`, computed in a thread if the body is large."""
    return await in_thread(function, body) if len(body) > LARGE_BYTES else function(body)


def _content_type(request: Request, *allowed: str) -> str:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type not in allowed:
        raise InvalidRequest(
            f"Content-Type is {shown(content_type)}; it must be {' or '.join(allowed)}"
        )
    return content_type


async def read_bytes(request: Request, memory: BodyMemory, copies: int = 1) -> bytes:
    """Read a body of any content, and hold memory for so many copies of it."""
    declared = request.headers.get("content-length", "0")
    if (
        declared.isascii()
        and declared.isdigit()
        and (len(declared) > 20 or int(declared) > memory.max_bytes)
    ):
        raise _too_large(memory.max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        if not chunk:  # the last chunk is empty
            continue
        memory.hold(copies * len(chunk))
        body += chunk
        if len(body) > memory.max_bytes:
            raise _too_large(memory.max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body exceeds the limit of {max_bytes} bytes")


def parse_image(image: object) -> ImageInput:
    """Return the bytes of a `data:` URL or base64, or else another URL or the id of an image.

    Raise `InvalidRequest`.
    """
    if not isinstance(image, str):
        raise InvalidRequest(
            "image must be a string: a data: URL, base64, an http(s) URL or the id of an image",
            "image",
        )
    if image.startswith(PREFIX) and len(image) <= ID_CHARS:  # base64 has no underscore
        return ImageHandle(image)
    if (scheme := _SCHEME.match(image)) and scheme[1].lower() != "data":
        return ImageUrl(image)
    header, comma, data = image.partition(",")
    if header[:5].lower() == "data:" and not (comma and header[-7:].lower() == ";base64"):
        problem = "image is a data: URL that is not base64-encoded"
        raise InvalidRequest(f"{problem}; it must be data:image/…;base64,…", "image")
    text = data if comma else image
    # pieces: each holds the interpreter's lock for some milliseconds
    starts = range(0, len(text), PIECE_BYTES)
    try:
        if starts and "=" in text[: starts[-1]]:
            raise ValueError("Excess data after padding")
        pieces = (text[start : start + PIECE_BYTES] for start in starts)
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        raise UnsupportedImage(f"image is not base64: {error}", "image") from error


async def _from_form(content_type: str, body: bytes, max_images: int | None) -> RequestBody:
    max_files = 2 if max_images is None else max_images + 1
    given = parse_form(body, content_type, max_files)
    images = given.pop("image", [])
    several = given.pop("images", []) if max_images is not None and not images else []
    if len(images) != 1 and not 1 <= len(several) <= (max_images or 0):
        if several:
            message = f"{len(several)} images are sent; at most {max_images} are allowed"
            raise InvalidRequest(message, "images")
        raise _repeated("image", len(images)) if images else missing_image()
    sent: list[ImageInput] = []
    for image in images or several:
        sent.append(image if isinstance(image, bytes) else parse_image(image))
    num_chars = 0
    for values in given.values():
        num_chars += sum(map(len, values))
    fields = ((name, form_value(name, values)) for name, values in given.items())
    document = await in_thread(dict, fields) if num_chars > LARGE_BYTES else dict(fields)
    return RequestBody(sent[0], document, sent if several else None)


def parse_form(body: bytes, content_type: str, max_files: int) -> dict[str, list[FormValue]]:
    """Return the values of each field, in the order sent; raise `InvalidRequest`.

    RFC 7578 and RFC 2046, 5.1.1. A boundary is searched, not parsed byte by byte.
    """
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
    values: dict[str, list[FormValue]] = {}
    num_files = 0
    num_fields = 0
    while not body.startswith(b"--", position):
        start = body.find(_LINE * 2, position, position + _MAX_HEAD_BYTES)
        if not body.startswith(_LINE, position) or start < 0:
            raise _malformed("the headers of a part do not end, or do not begin on a new line")
        name, is_file = _part_name(body[position + 2 : start])
        start += 4
        end = body.find(delimiter, start)
        if end < 0:
            raise _malformed("it is truncated, its closing boundary is missing")
        num_files += is_file
        num_fields += not is_file
        if num_files > max_files or num_fields > _MAX_FIELDS:
            found = f"more than {max_files} files or {_MAX_FIELDS} fields"
            raise _malformed(f"it has {found}, the maximum")
        content = body[start:end]
        values.setdefault(name, []).append(content if is_file else _text(content))
        position = end + len(delimiter)
    return values


@lru_cache
def _part_name(head: bytes) -> tuple[str, bool]:
    """Return the name in the headers of a part, and True for a file."""
    disposition = b""
    lines = head.split(_LINE)
    for line in lines:
        field, colon, value = line.partition(b":")
        if not colon or len(lines) > _MAX_PART_HEADERS:
            allowed = f"1 to {_MAX_PART_HEADERS} headers of a name and a value"
            raise _malformed(f"a part must have {allowed}")
        if field.lower() == b"content-disposition":
            disposition = value.strip()
    options = parse_options_header(disposition)[1]
    if b"name" not in options:
        raise _malformed("a part must have a Content-Disposition with a name")
    return _text(options[b"name"]), b"filename" in options


def _text(data: bytes) -> str:
    """Return UTF-8, else Latin-1, whatever charset a client names."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _malformed(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the multipart body is malformed: {problem}")


def form_value(name: str, values: Sequence[FormValue]) -> object:
    """Return the values of a field as the JSON type of that field; raise `InvalidRequest`.

    A list is given as repeated fields, as one JSON array, or comma-separated; quotes hold a comma.
    """
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(values):
        raise InvalidRequest(
            f"{name[:_MAX_NAME_CHARS]} is a file; only image may be a file", name[:_MAX_NAME_CHARS]
        )
    schema = _TYPES.get(name, {"type": "string"})
    if schema["type"] == "array":
        if len(texts) == 1 and texts[0].lstrip().startswith("["):
            data = texts[0].encode(errors="surrogatepass")
            document = json_value(data, f"{name}, which starts with [,", MAX_JSON_VALUES, name)
            check_texts(document, name)
            return document
        elements: list[str] = []
        for text in texts:
            # validation refuses longer lists
            is_list = len(text) <= LARGE_BYTES and 0 < text.count(",") <= _MAX_FIELDS
            found = _ELEMENT.finditer(text) if is_list else ()
            split = [(match[1] or match[2] or "").strip() for match in found]
            elements += list(filter(None, split)) or [text]
        is_numeric = schema["items"]["type"] == "number"
        return [_number(text) for text in elements] if is_numeric else elements
    if len(texts) > 1:
        raise _repeated(name, len(texts))
    match schema["type"]:
        case "boolean":
            return _BOOLEANS.get(texts[0], texts[0])
        case "integer" | "number":
            return _number(texts[0])
        case _:
            return texts[0]


def _number(text: str) -> object:
    """Return `text` as a JSON number, or unchanged: validation of the field then rejects it."""
    if len(text) > MAX_DIGITS:
        return text
    try:
        number = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def _repeated(name: str, count: int) -> InvalidRequest:
    name = name[:_MAX_NAME_CHARS]
    return InvalidRequest(f"{name} occurs {count} times; send it once", name)


def missing_image() -> InvalidRequest:
    return InvalidRequest("image is missing: send a file, a data: URL or base64", "image")
