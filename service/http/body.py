"""Request bodies to an image and fields: multipart forms and JSON, counted while they stream.

Form values are text; they become the JSON types that the same field has in a JSON body. It knows no task.
"""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import InvalidRequest, PayloadTooLarge, UnsupportedImage
from service.images.url_rules import ImageInput, ImageUrl
from tasks.parameter_kinds import BoxParameter, TextListParameter
from tasks.table import TASKS

_FORM, _JSON = "multipart/form-data", "application/json"
_MAX_FORM_FIELDS = 200
_CHARSET = re.compile(
    r";\s*charset=[^;]*", re.IGNORECASE
)  # forms are UTF-8; some decoders of Python take quadratic time
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_LISTS = {
    "models",
    *(p.name for t in TASKS.values() for p in t.parameters if isinstance(p, TextListParameter | BoxParameter)),
}
_NUMBERS = {"max_new_tokens", "num_beams", "temperature", "top_p", "seed"}
_CLAIMS = {"constrained", "stream"}  # true or false
_TRUTHS = {"true": True, "false": False}
_NUMBER_LISTS = {p.name for t in TASKS.values() for p in t.parameters if isinstance(p, BoxParameter)}


@dataclass(frozen=True, slots=True)
class RequestBody:
    """An encoded image, or where it is, and the other fields, in JSON types."""

    image: ImageInput
    fields: Mapping[str, object]


async def read_body(request: Request, max_bytes: int) -> RequestBody:
    """Read a multipart or JSON body; raise `InvalidRequest`, `PayloadTooLarge` or `UnsupportedImage`."""
    content_type = _content_type(request, _FORM, _JSON)
    body = await read_bytes(request, max_bytes)
    return await _from_form(request, body) if content_type == _FORM else _from_json(body)


async def read_json(request: Request, max_bytes: int) -> dict[str, object]:
    """Read a body that is a JSON object; raise `InvalidRequest` or `PayloadTooLarge`."""
    _content_type(request, _JSON)
    return json_object(await read_bytes(request, max_bytes))


def _content_type(request: Request, *allowed: str) -> str:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type not in allowed:
        raise InvalidRequest(f"content type {content_type!r} is not known; send {' or '.join(allowed)}")
    return content_type


def _check_declared_length(request: Request, max_bytes: int) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and (len(declared) > 20 or int(declared) > max_bytes):
        raise _too_large(max_bytes)


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Read a body as it is; raise `PayloadTooLarge`."""
    _check_declared_length(request, max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is over {max_bytes} bytes, the most that is allowed")


def _from_json(body: bytes) -> RequestBody:
    document = json_object(body)
    if "image" not in document:
        raise no_image()
    return RequestBody(image_of_text(document.pop("image")), document)


def json_object(body: bytes) -> dict[str, object]:
    """Return a JSON object in which no name is there twice; raise `InvalidRequest`."""
    try:
        document = json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(document).__name__}")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name[:80]!r} is there {count} times; send it once")
    return dict(pairs)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def image_of_text(image: object) -> ImageInput:
    """Return the bytes of a `data:` URL or of bare base64, or a URL of another scheme as it is.

    Raise `InvalidRequest` or `UnsupportedImage`.
    """
    if not isinstance(image, str):
        raise InvalidRequest("image must be a text: a data: URL, base64 or a URL", "image")
    if (scheme := _SCHEME.match(image)) and scheme[1].lower() != "data":
        return ImageUrl(image)
    header, comma, data = image.partition(",")
    if header.lower().startswith("data:") and not (comma and header.lower().endswith(";base64")):
        raise InvalidRequest("image is a data: URL that is not base64; it must be data:image/…;base64,…", "image")
    try:
        return base64.b64decode(data if comma else image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnsupportedImage(f"image is not base64: {error}", "image") from error


async def _from_form(request: Request, body: bytes) -> RequestBody:
    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise InvalidRequest("the multipart body is cut off: its closing boundary is missing")
    headers = Headers({"content-type": _CHARSET.sub("", request.headers["content-type"])})
    part_limits = {"max_files": 2, "max_fields": _MAX_FORM_FIELDS, "max_part_size": len(body) + 1}
    try:
        form = await MultiPartParser(headers, _chunks(body), **part_limits).parse()
    except (MultiPartException, MultipartParseError, KeyError, ValueError) as error:
        raise InvalidRequest(f"the multipart body cannot be read: {str(error)[:200]}") from error
    try:
        return await _from_form_data(form)
    finally:
        await form.close()


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _from_form_data(form: FormData) -> RequestBody:
    images = form.getlist("image")
    if len(images) != 1:
        raise no_image() if not images else InvalidRequest("image is there more than once; send one", "image")
    image = images[0]
    data = await image.read() if isinstance(image, UploadFile) else image_of_text(image)
    return RequestBody(data, {name: _form_value(name, form.getlist(name)) for name in form if name != "image"})


def _form_value(name: str, values: list[UploadFile | str]) -> object:
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(values):
        raise InvalidRequest(f"{name[:80]} is a file; only image may be one", name[:80])
    if name in _LISTS:
        return _form_list(name, texts)
    if len(texts) > 1:
        raise InvalidRequest(f"{name[:80]} is there {len(texts)} times; send it once", name[:80])
    if name in _CLAIMS:
        return _TRUTHS.get(texts[0], texts[0])
    return _number(texts[0]) if name in _NUMBERS else texts[0]


def _form_list(name: str, texts: list[str]) -> object:
    """Return a list given as repeated fields or as one field of JSON."""
    if len(texts) == 1 and texts[0].lstrip().startswith("["):
        try:
            return json.loads(texts[0], parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{name} starts like a JSON list but is none: {str(error)[:200]}", name) from error
    return [_number(text) for text in texts] if name in _NUMBER_LISTS else texts


def _number(text: str) -> object:
    """Return the number that `text` is in JSON, or `text` itself, which the check of the field then refuses."""
    try:
        number = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def no_image() -> InvalidRequest:
    """Return the error of a request without an image."""
    return InvalidRequest("image is missing: send a file, a data: URL or base64", "image")
