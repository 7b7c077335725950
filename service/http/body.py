"""Request bodies to an image and fields: forms and JSON, bounded before they are parsed.

Values of a form are text; each becomes the JSON type of its field in a JSON body. No step of
reading a large body holds the interpreter's lock, or the event loop, for long: 20 MB of numbers of
4,300 digits take 0.15 s, 10 million escapes 0.07 s.
"""

import asyncio
import binascii
import codecs
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from pydantic_core import from_json
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.admission.threads import PARSING, current_client
from service.errors import InvalidRequest, ServiceError, UnsupportedImage
from service.images.inputs import ID_CHARS, ID_PREFIX, ImageHandle, ImageInput, ImageUrl
from service.inference.request_fields import PARAMETERS, CompareFields, PredictFields
from tasks.errors import shown

if TYPE_CHECKING:  # python_multipart 0.0.34 declares it for type checkers alone
    from python_multipart.multipart import CallbackName

LARGE_BYTES = 250_000  # parsed in a thread: 20 MB of base64 take a tenth of a second
PIECE_BYTES = 500_000  # a multiple of 4, for base64
MAX_JSON_VALUES = 10_000  # elements of lists and objects; no task takes over 32 labels
_NESTED_MARKS = b"[{:"
_VALUE_MARKS = b",[{"  # base64 has none of them, so that an image counts as one value
_MAX_COUNTED_VALUES = 1_000_000  # no reader allows more
_VALUE_BYTES = 100  # a small object of Python and its place in a list or dictionary
_WIDE_CHAR_BYTES = 4
_LARGE_PARSED_BYTES = 2 * LARGE_BYTES  # size of a parsed body; many small values take long, too
FORM = "multipart/form-data"
_JSON = "application/json"
_MAX_ERROR_CHARS = 200  # a parser's message is cut here
_MAX_FORM_PARTS = 240
_MAX_ELEMENTS = 200  # longer lists are not split: validation refuses them
_FORM_COPIES = 3  # the body, its parts, and the image taken out of them
_MAX_NAME_CHARS = 80  # a field's name in messages is cut here
# Bounded, as base64 looks like a scheme: 20 MB of it held the interpreter's lock for 0.2 s.
_SCHEME = re.compile(r"\s{0,100}([A-Za-z][A-Za-z0-9+.-]{0,100}):")
# Quoted, or without a comma; each character is read once.
_ELEMENT = re.compile(r'\s{0,100}(?:"([^"]*)"[^,]*|([^,]+))')
_POINT = re.compile(r"\s{0,100}-?\.[0-9]")  # JSON has no such number
_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}  # generated clients

ParsedT = TypeVar("ParsedT")
# by client: in each step of the event loop it receives one piece of one large body
_TURNS: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def json_object(
    body: bytes, max_values: int = MAX_JSON_VALUES, max_nested: int | None = None
) -> dict[str, object]:
    """Return a JSON object of so many values, with up to `max_nested` lists, objects and names.

    These take ten times as long as the numbers of a mask.
    """
    if max_nested is not None and _num_occurrences(body, _NESTED_MARKS, max_nested) > max_nested:
        raise InvalidRequest(f"the body has more than {max_nested} lists, objects and names")
    document = _json_value(body, "the body", max_values)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(document).__name__}")
    return document


def _json_value(data: bytes, subject: str, max_values: int, param: str | None = None) -> object:
    """Return a JSON value; the parser bounds its levels, and the digits of a number."""
    if _num_occurrences(data, _VALUE_MARKS, max_values) > max_values:
        problem = f"{subject} has more than {max_values} values, lists and objects"
        raise InvalidRequest(problem, param)
    try:
        value: object = from_json(data.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"{subject} is not JSON: {error}", param) from error
    return value


def _num_occurrences(body: bytes, marks: bytes, maximum: int) -> int:
    """Count bytes that are one of `marks` up to about `maximum`, without the interpreter's lock."""
    codes = np.frombuffer(body, np.uint8)
    num_found = 0
    for start in range(0, len(body), PIECE_BYTES):
        piece = codes[start : start + PIECE_BYTES]
        num_found += sum(int(np.count_nonzero(piece == mark)) for mark in marks)
        if num_found > maximum:
            break
    return num_found


def parsed_bytes(body: bytes) -> int:
    """Return an upper bound of the memory that parsing a body takes in addition to the body."""
    starts = range(0, len(body) if b"\\" in body else 0, PIECE_BYTES)
    has_escapes = any(body.find(b"\\u", start, start + PIECE_BYTES + 1) >= 0 for start in starts)
    is_wide = has_escapes or not body.isascii()
    num_values = _num_occurrences(body, _VALUE_MARKS, _MAX_COUNTED_VALUES)
    return len(body) * (_WIDE_CHAR_BYTES if is_wide else 2) + num_values * _VALUE_BYTES


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
    """The memory for one body: at most `max_bytes` as it is sent, counted by `hold`."""

    max_bytes: int
    # counts bytes of the body, and of what is parsed of it, until the request ends
    hold: Callable[[int], None]


# Receives the pieces of a part's content
Sink = Callable[[bytes], object]


class FormParser(MultipartParser):
    """Passes the content of each part to what `begin_part` returns for its name and file name.

    A part that is no file has no file name. Methods raise `InvalidRequest`.
    """

    def __init__(self, content_type: str, begin_part: Callable[[str, str | None], Sink]) -> None:
        mime_type, options = parse_options_header(content_type)
        if mime_type != FORM.encode() or b"boundary" not in options:
            problem = f"Content-Type is {shown(content_type)}"
            raise InvalidRequest(f"{problem}; it must be {FORM} with a boundary")
        self._begin_part = begin_part
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._sink: Sink
        self._is_complete = False
        try:
            super().__init__(options[b"boundary"])
        except (FormParserError, ValueError) as error:
            raise _malformed(error) from error

    def write(self, data: bytes) -> int:
        try:
            return super().write(data)
        except (FormParserError, ValueError) as error:
            raise _malformed(error) from error

    def finish(self) -> None:
        if not self._is_complete:
            raise InvalidRequest("the multipart body is truncated: its closing boundary is missing")

    # python_multipart 0.0.34 calls it for each event; `data[start:end]` belongs to it
    def callback(
        self,
        name: "CallbackName",
        data: bytes | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        content = b"" if data is None else data[start:end]
        match name:
            case "part_data":
                self._sink(content)
            case "header_field":
                self._header += content
            case "header_value":
                self._value += content
            case "header_end":
                if self._header.lower() == b"content-disposition":
                    self._disposition = bytes(self._value)
                self._header.clear()
                self._value.clear()
            case "headers_finished":
                _, options = parse_options_header(self._disposition)
                self._disposition = b""
                if b"name" not in options:
                    raise _malformed("a part has no name")
                texts = {key: value.decode(errors="replace") for key, value in options.items()}
                self._sink = self._begin_part(texts[b"name"], texts.get(b"filename"))
            case "end":
                self._is_complete = True


def _malformed(error: Exception | str) -> InvalidRequest:
    return InvalidRequest(f"the multipart body is malformed: {str(error)[:_MAX_ERROR_CHARS]}")


async def read_body(request: Request, memory: BodyMemory, max_images: int = 1) -> RequestBody:
    """Read a form or JSON with an `image`, or up to `max_images` images.

    Raise `InvalidRequest` or `UnsupportedImage`.
    """
    split = partial(_split, max_images)
    if _checked_type(request, FORM, _JSON) == _JSON:
        body = await read_bytes(request, memory)
        return await parsed(lambda data: split(json_object(data)), body, memory)
    body = await read_bytes(request, memory, _FORM_COPIES)
    return await off_loop(partial(_read_form, split, request.headers["content-type"]), body)


def _split(max_images: int, document: dict[str, object]) -> RequestBody:
    if max_images > 1 and "images" in document and "image" not in document:
        texts = document.pop("images")
        if not isinstance(texts, list) or not 1 <= len(texts) <= max_images:
            sent = f"{len(texts)} images" if isinstance(texts, list) else shown(texts)
            message = f"images must be a list of 1 to {max_images} images, not {sent}"
            raise InvalidRequest(message, "images")
        images = list(map(parse_image, texts))
        return RequestBody(images[0], document, images)
    if "image" not in document:
        raise missing_image()
    return RequestBody(parse_image(document.pop("image")), document)


def _read_form(
    split: Callable[[dict[str, object]], RequestBody], content_type: str, body: bytes
) -> RequestBody:
    parts: list[tuple[str, str | None, io.BytesIO]] = []

    def begin_part(name: str, filename: str | None) -> Sink:
        content = io.BytesIO()
        parts.append((name, filename, content))
        if len(parts) > _MAX_FORM_PARTS:
            raise InvalidRequest(f"the form has more than {_MAX_FORM_PARTS} parts")
        return content.write

    parser = FormParser(content_type, begin_part)
    for start in range(0, len(body), PIECE_BYTES):
        parser.write(body[start : start + PIECE_BYTES])
    parser.finish()
    values: dict[str, list[bytes | str]] = {}
    for name, filename, content in parts:
        data = content.getvalue()
        value = data.decode(errors="replace") if filename is None else data
        values.setdefault(name, []).append(value)
    return split({name: form_value(name, values[name]) for name in values})


async def read_json(request: Request, memory: BodyMemory) -> dict[str, object]:
    _checked_type(request, _JSON)
    return await parsed(json_object, await read_bytes(request, memory), memory)


def _checked_type(request: Request, *allowed: str) -> str:
    mime_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if mime_type not in allowed:
        types = " or ".join(allowed)
        raise InvalidRequest(f"Content-Type is {shown(mime_type)}; it must be {types}")
    return mime_type


async def parsed(parse: Callable[[bytes], ParsedT], body: bytes, memory: BodyMemory) -> ParsedT:
    """Return `parse(body)`, computed in a thread if the body is large; hold what it takes."""
    num_bytes = await off_loop(parsed_bytes, body)
    memory.hold(num_bytes)
    return await PARSING.run(parse, body) if num_bytes > _LARGE_PARSED_BYTES else parse(body)


async def off_loop(function: Callable[[bytes], ParsedT], body: bytes) -> ParsedT:
    return await PARSING.run(function, body) if len(body) > LARGE_BYTES else function(body)


async def read_bytes(request: Request, memory: BodyMemory, copies: int = 1) -> bytes:
    declared = request.headers.get("content-length", "0")
    num_bytes = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
    body = io.BytesIO()  # returns its bytes without a copy
    turn = _TURNS.setdefault(current_client.get(), asyncio.Lock())
    async with aclosing(request.stream()) as chunks:
        while num_bytes <= memory.max_bytes:
            chunk = await anext(chunks, None)
            if chunk is None:
                return body.getvalue()
            if chunk:  # the last chunk is empty
                memory.hold(copies * len(chunk))
                body.write(chunk)
                num_bytes = body.tell()
                if num_bytes > LARGE_BYTES:
                    async with turn:
                        await asyncio.sleep(0)
    problem = f"the request body exceeds the limit of {memory.max_bytes} bytes"
    raise ServiceError(problem, code="payload_too_large")


def parse_image(image: object) -> ImageInput:
    """Return a file, a URL, or the id of a stored image; decode `data:` URLs and base64."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise InvalidRequest(
            "image must be a string: a data: URL, base64, an http(s) URL or the id of an image",
            "image",
        )
    if image.startswith(ID_PREFIX) and len(image) <= ID_CHARS:  # base64 has no underscore
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
    decoded = io.BytesIO()
    try:
        if starts and text.find("=", 0, starts[-1]) >= 0:
            raise ValueError("Excess data after padding")
        for start in starts:
            decoded.write(binascii.a2b_base64(text[start : start + PIECE_BYTES], strict_mode=True))
        return decoded.getvalue()
    except (binascii.Error, ValueError) as error:
        raise UnsupportedImage(f"image is not base64: {error}", "image") from error


def form_value(name: str, values: Sequence[bytes | str]) -> object:
    """Return the values of a field as the JSON type of that field; raise `InvalidRequest`.

    A list is given as repeated fields, as one JSON array, or comma-separated; quotes hold a comma.
    """
    if name == "images":
        return list(values)
    if name == "image" and len(values) == 1:
        return values[0]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(values) and name != "image":
        name = name[:_MAX_NAME_CHARS]
        raise InvalidRequest(f"{name} is a file; only image may be a file", name)
    schema = _TYPES.get(name, {"type": "string"})
    if schema["type"] == "array":
        return _list_value(name, texts, schema["items"]["type"] == "number")
    if len(values) > 1:
        name = name[:_MAX_NAME_CHARS]
        raise InvalidRequest(f"{name} occurs {len(values)} times; send it once", name)
    if schema["type"] == "boolean":
        return _BOOLEANS.get(texts[0], texts[0])
    return _number(texts[0]) if schema["type"] in ("integer", "number") else texts[0]


def _list_value(name: str, texts: Sequence[str], is_numeric: bool) -> object:
    if len(texts) == 1 and texts[0].lstrip().startswith("["):
        data = texts[0].encode()
        return _json_value(data, f"{name}, which starts with [,", MAX_JSON_VALUES, name)
    elements: list[str] = []
    for text in texts:
        split: list[str] = []
        if len(text) <= LARGE_BYTES and 0 < text.count(",") <= _MAX_ELEMENTS:
            split = [(match[1] or match[2] or "").strip() for match in _ELEMENT.finditer(text)]
        elements += list(filter(None, split)) or [text]
    return list(map(_number, elements)) if is_numeric else elements


def _number(text: str) -> object:
    """Return `text` as a number, or unchanged: validation of the field then rejects it."""
    if _POINT.match(text):
        text = text.replace(".", "0.", 1)
    try:
        number = from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def missing_image() -> InvalidRequest:
    return InvalidRequest("image is missing: send a file, a data: URL or base64", "image")
