"""Request bodies to an image and fields: forms and JSON, limited while they stream.

Values of a form are text; each becomes the JSON type of its field in a JSON body. No step of
reading a large body holds the interpreter's lock, or the event loop, for more than some hundredths
of a second.
"""

import asyncio
import binascii
import json
import re
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import InvalidRequest, PayloadTooLarge, UnsupportedImage
from service.http.json_values import (
    LARGE_BYTES,
    MAX_DIGITS,
    MAX_JSON_VALUES,
    PIECE_BYTES,
    check_texts,
    cut,
    json_object,
    json_value,
    parsed_bytes,
    refuse_constant,
)
from service.images.decoding import in_thread
from service.images.inputs import ID_CHARS, ID_PREFIX, ImageHandle, ImageInput, ImageUrl
from service.inference.answer_places import MAX_IMAGES
from service.inference.request_fields import PARAMETERS, CompareFields, PredictFields
from tasks.errors import shown

_LARGE_PARSED_BYTES = 2 * LARGE_BYTES  # size of a parsed body; many small values take long, too
_FORM = "multipart/form-data"
_JSON = "application/json"
_MAX_FORM_FIELDS = 200
_FORM_COPIES = 3  # the body, its parts, and the image taken out of them
_MAX_NAME_CHARS = 80  # a field's name in messages is cut here
# Removed, as forms are UTF-8: some of Python's decoders need quadratic time.
_CHARSET = re.compile(r";\s*charset=[^;]*", re.IGNORECASE)
# Bounded, as base64 looks like a scheme: 20 MB of it held the interpreter's lock for 0.2 s.
_SCHEME = re.compile(r"\s{0,100}([A-Za-z][A-Za-z0-9+.-]{0,100}):")
# Quoted, or without a comma; each character is read once.
_ELEMENT = re.compile(r'\s{0,100}(?:"([^"]*)"[^,]*|([^,]+))')
_BOOLEANS = {"true": True, "false": False}

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
        return await _from_form(
            request, await read_bytes(request, memory, _FORM_COPIES), max_images
        )

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
    try:
        if starts and "=" in text[: starts[-1]]:
            raise ValueError("Excess data after padding")
        pieces = (text[start : start + PIECE_BYTES] for start in starts)
        return b"".join(binascii.a2b_base64(piece, strict_mode=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        raise UnsupportedImage(f"image is not base64: {error}", "image") from error


class _InMemoryParser(MultiPartParser):
    """Keeps files in memory, where they are counted; Starlette's parser uses TMPDIR."""

    spool_max_size = sys.maxsize


async def _from_form(request: Request, body: bytes, max_images: int | None) -> RequestBody:
    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise InvalidRequest("the multipart body is truncated: its closing boundary is missing")
    headers = Headers({"content-type": _CHARSET.sub("", request.headers["content-type"])})
    max_files = 2 if max_images is None else max_images + 1
    part_limits = {
        "max_files": max_files,
        "max_fields": _MAX_FORM_FIELDS,
        "max_part_size": len(body) + 1,
    }
    try:
        form = await _InMemoryParser(headers, _chunks(body), **part_limits).parse()
    except (MultiPartException, MultipartParseError, KeyError, ValueError) as error:
        raise InvalidRequest(f"the multipart body is malformed: {cut(error)}") from error
    try:
        images = form.getlist("image")
        several = form.getlist("images") if max_images is not None and not images else []
        if len(images) != 1 and not 1 <= len(several) <= (max_images or 0):
            if several:
                message = f"{len(several)} images are sent; at most {max_images} are allowed"
                raise InvalidRequest(message, "images")
            raise _repeated("image", len(images)) if images else missing_image()
        sent: list[ImageInput] = []
        for image in images or several:
            data = await image.read() if isinstance(image, UploadFile) else parse_image(image)
            sent.append(data)
        taken = ("image", "images") if several else ("image",)
        given = {name: form.getlist(name) for name in form if name not in taken}
        num_chars = sum(len(text) for _, text in form.multi_items() if isinstance(text, str))
        fields = ((name, form_value(name, values)) for name, values in given.items())
        document = await in_thread(dict, fields) if num_chars > LARGE_BYTES else dict(fields)
        return RequestBody(sent[0], document, sent if several else None)
    finally:
        await form.close()


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body in pieces; parsing 20 MB at once would stop the loop for 0.1 s."""
    for start in range(0, len(body), PIECE_BYTES):
        if start:
            await asyncio.sleep(0)
        yield body[start : start + PIECE_BYTES]


def form_value(name: str, values: Sequence[UploadFile | str]) -> object:
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
            is_list = len(text) <= LARGE_BYTES and 0 < text.count(",") <= _MAX_FORM_FIELDS
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
