import asyncio
import base64
import codecs
import json
import time
from itertools import chain
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import InvalidRequest, ServiceError, UnsupportedImage
from service.http.body import RequestBody, json_object, parsed_bytes, read_body
from service.images.inputs import ImageUrl
from tests.support.request_bodies import (
    FORM,
    IMAGE,
    JSON,
    MAX_BYTES,
    file_part,
    form,
    memory,
    part,
    read,
    request,
)

BASE64 = base64.b64encode(IMAGE).decode()
FIELDS: dict[str, Any] = {
    "task": "open_vocabulary_detection",
    "model": "florence-2-mini",
    "labels": ["red circle", "Käfer"],
    "region": [1, 2.5, 30, 40],
    "max_new_tokens": 12,
    "temperature": 0.5,
    "seed": 7,
    "num_beams": 1,
    "top_p": 0.9,
    "constrained": False,
    "question": "7",
}


def read_form(*parts: bytes) -> RequestBody:
    return read(form(file_part("image", IMAGE), *parts), FORM)


def read_json(**fields: object) -> RequestBody:
    return read(json.dumps(fields).encode(), JSON)


def parts_of(name: str, value: object, is_json: bool) -> list[bytes]:
    if isinstance(value, list) and not is_json:
        return [part(name, str(item)) for item in value]
    return [part(name, value if isinstance(value, str) else json.dumps(value))]


@pytest.mark.parametrize("is_json", [True, False], ids=["JSON lists", "repeated fields"])
def test_form_and_json_are_equal(is_json: bool) -> None:
    parts = chain.from_iterable(parts_of(name, FIELDS[name], is_json) for name in FIELDS)
    from_form = read_form(*parts)
    from_json = read_json(image=BASE64, **FIELDS)
    assert from_form == from_json == RequestBody(IMAGE, FIELDS)
    types = [list(map(type, body.fields.values())) for body in (from_form, from_json)]
    assert types[0] == types[1]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["circle,square"], ["circle", "square"]),
        (["circle, red square ,"], ["circle", "red square"]),
        (["a", "b,c"], ["a", "b", "c"]),
        (['"a red car, parked", dog'], ["a red car, parked", "dog"]),
        (['["a, b"]'], ["a, b"]),
        ([","], [","]),
        (['a,"b'], ["a", '"b']),
        (["x,y" * 201], ["x,y" * 201]),
        (["dog"], ["dog"]),
    ],
)
def test_list_of_a_form_is_split(texts: list[str], labels: list[str]) -> None:
    fields = read_form(*[part("labels", text) for text in texts]).fields
    assert fields == {"labels": labels}
    numbers = read_form(part("region", "1, 2.5,30,40"), part("models", "a,b")).fields
    assert numbers == {"region": [1, 2.5, 30, 40], "models": ["a", "b"]}
    points = read_form(part("region", ".5, -.5,1.5,.x"), part("min_score", ".9")).fields
    assert points == {"region": [0.5, -0.5, 1.5, ".x"], "min_score": 0.9}


def test_body_in_many_chunks_is_the_body() -> None:
    body = form(file_part("image", IMAGE), part("task", "ocr"))
    chunks = [body[i : i + 1] for i in range(len(body))]
    read = asyncio.run(read_body(request(chunks, FORM), memory()))
    assert read == RequestBody(IMAGE, {"task": "ocr"})


@pytest.mark.parametrize("content_type", ["APPLICATION/JSON", "application/json; charset=utf-8"])
def test_json_content_type_has_options(content_type: str) -> None:
    body = codecs.BOM_UTF8 + json.dumps({"image": BASE64}).encode()
    assert read(body, content_type) == RequestBody(IMAGE, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("seed", text) for text in ("twelve", "1e", "", "true", "null", "[1]", "NaN", "0x10")),
        *(("seed", text) for text in ("Infinity", "9" * 5000)),
        *(("constrained", text) for text in ("TRUE", "1", "", "null")),
        *(("question", text) for text in ("true", "12", '{"a": 1}')),
    ],
)
def test_other_value_of_a_form_stays_text(name: str, text: str) -> None:
    assert read_form(part(name, text)).fields == {name: text}


@pytest.mark.parametrize(
    ("text", "image"),
    [
        (BASE64, IMAGE),
        (f"data:image/png;base64,{BASE64}", IMAGE),
        (f"DATA:image/webp;charset=x;BASE64,{BASE64}", IMAGE),
        (f"data:;base64,{BASE64}", IMAGE),
        *((url, ImageUrl(url)) for url in ("http://example.org/a.png", "HTTPS://example.org")),
        *((url, ImageUrl(url)) for url in (" gopher:x", "a+b.c-1:")),
    ],
)
def test_image_is_base64_or_a_url(text: str, image: bytes | ImageUrl) -> None:
    assert read_json(image=text).image == image
    assert read(form(part("image", text)), FORM).image == image


TEXTS = ("QUJ", "Q!JD", "QUJD\u00e4", "//host/a.png", "_-_-", "a,b", "=", "a" * 102 + ":")
NO_TEXTS: tuple[object, ...] = (None, 1, True, ["QUJD"], {"url": "x"})
DATA_URLS = ("data:image/png,abc", "data:image/png;utf8,abc", "data:image/png;base64", "data:")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        *(({"image": text}, UnsupportedImage, "not base64") for text in TEXTS),
        *(({"image": url}, InvalidRequest, "not base64") for url in DATA_URLS),
        *(({"image": value}, InvalidRequest, "must be a string") for value in NO_TEXTS),
        ({}, InvalidRequest, "image is missing"),
        ({"images": [BASE64]}, InvalidRequest, "image is missing"),  # are for other routes
    ],
)
def test_other_image_in_json_is_refused(
    fields: dict[str, Any], error: type[ServiceError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read(json.dumps(fields).encode(), JSON)
    assert caught.value.param == "image"


FILE = file_part("image", IMAGE)
LISTS = ("[1, 2", "[NaN]", "[" * 5000, "[" + "1," * 10_000 + "1]")


@pytest.mark.parametrize(
    ("parts", "reason", "param"),
    [
        ([FILE, part("seed", "1"), part("seed", "2")], "seed occurs 2 times", "seed"),
        ([FILE, part("unknown", "1"), part("unknown", "2")], "unknown occurs 2 times", "unknown"),
        ([FILE, part("image", BASE64)], "image occurs 2 times", "image"),
        ([FILE, FILE], "image occurs 2 times", "image"),
        ([FILE, file_part("labels", b"x")], "labels is a file; only image may be", "labels"),
        ([FILE, file_part("seed", b"x")], "seed is a file; only image may be a file", "seed"),
        *(([FILE, part("region", value)], "region", "region") for value in LISTS),
        ([part("task", "ocr")], "image is missing", "image"),
        ([], "image is missing", "image"),
    ],
)
def test_refused_part_of_a_form(parts: list[bytes], reason: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        read(form(*parts), FORM)
    assert caught.value.param == param


OTHER_TYPES = (None, "", "text/plain", "application/x-www-form-urlencoded", "image/png")
NO_BOUNDARIES = ("", "; boundary=", f"; boundary={'b' * 5000}", "; boundary=\xe9")


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        *((b"{}", kind, "multipart/form-data or application/json") for kind in OTHER_TYPES),
        *(
            (form(FILE), f"multipart/form-data{options}", "multipart|form")
            for options in NO_BOUNDARIES
        ),
        (b"not multipart at all", FORM, "multipart|form"),
        (b"--b\r\n\r\n\r\nx\r\n--b--\r\n", FORM, "multipart|form"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", FORM, "multipart|form"),
        (form(FILE, part("labels", "a"), b"--b\r\nA: b\r\n\r\nb\r\n"), FORM, "multipart|form"),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, FORM, "multipart|form"),
        (form(FILE, *[part(f"f{i}", "x") for i in range(240)]), FORM, "multipart|form"),
        (b"", FORM, "multipart|form"),
        (b"", JSON, "not JSON"),
        (b"{", JSON, "not JSON"),
        (b"nonsense", JSON, "not JSON"),
        (b"\xff\xfe\xff", JSON, "not JSON"),
        (b'{"image": "QUJD"} x', JSON, "not JSON"),
        (b'{"task": ' + b"[" * 600 + b"]" * 600 + b"}", JSON, "not JSON"),
        (rb'{"task": "\ud800"}', JSON, "not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", JSON, "not JSON"),
        (b'{"seed": NaN}', JSON, "not JSON"),
        *((document, JSON, "a JSON object") for document in (b"[]", b"1", b"null", b'"text"')),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_malformed_body_is_refused(body: bytes, content_type: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read(body, content_type)
    assert len(caught.value.message) < 300


def test_empty_file_is_an_empty_image() -> None:
    assert read(form(file_part("image", b"")), FORM).image == b""


def test_truncated_multipart_is_rejected() -> None:
    """The missing part may be a required field."""
    parts = [file_part("image", IMAGE), part("task", "captioning"), part("seed", "1")]
    body = form(*parts)
    for num_bytes in range(len(body) - 2):
        with pytest.raises(InvalidRequest):
            read(body[:num_bytes], FORM)


@pytest.mark.parametrize("filling", [b"{},", b"1,"])
def test_json_values_are_limited(filling: bytes) -> None:
    body = b'{"image": "QUJD", "labels": [' + filling * (19_000_000 // len(filling)) + b"1]}"
    start_s = time.process_time()
    with pytest.raises(InvalidRequest, match="more than 10000 values, lists and objects"):
        json_object(body)
    assert time.process_time() - start_s < 5  # 8 s to parse


def test_values_of_all_pieces_count() -> None:
    spread = b'{"image": "QUJD", "labels": [' + (b"1," + b" " * 500) * 9_990 + b"1]}"
    assert len(json_object(spread)["labels"]) == 9_991  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="more than 10000 values"):
        json_object(spread.replace(b"1]}", b"1" + b",1" * 20 + b"]}"))


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_declared_size_is_limited(content_type: str) -> None:
    async def never() -> Message:
        raise AssertionError("the body was read")

    declared = str(MAX_BYTES + 1).encode()
    headers = [(b"content-type", content_type.encode()), (b"content-length", declared)]
    unread = Request({"type": "http", "headers": headers}, never)
    with pytest.raises(ServiceError, match=f"exceeds the limit of {MAX_BYTES} bytes"):
        asyncio.run(read_body(unread, memory()))


def test_streamed_size_is_limited() -> None:
    num_read = 0

    async def receive() -> Message:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    scope = {"type": "http", "headers": [(b"content-type", JSON.encode())]}
    with pytest.raises(ServiceError) as caught:
        asyncio.run(read_body(Request(scope, receive), memory()))
    assert caught.value.code == "payload_too_large"
    assert num_read == MAX_BYTES // 1000 + 1


def test_body_at_the_limit_is_read() -> None:
    body = json.dumps({"image": BASE64}).encode().ljust(MAX_BYTES)
    assert read(body, JSON, str(MAX_BYTES)).image == IMAGE


@pytest.mark.parametrize("num_bytes", [499_999, 500_000, 500_001, 1_500_000])
def test_large_base64_is_decoded(num_bytes: int) -> None:
    image = bytes(range(256)) * (num_bytes // 256 + 1)
    body = json.dumps({"image": base64.b64encode(image).decode()}).encode()
    assert asyncio.run(read_body(request([body], JSON), memory(len(body)))).image == image


@pytest.mark.parametrize("num_before", [0, 499_998, 499_999, 500_000, 999_998])
def test_escapes_take_memory(num_before: int) -> None:
    text = "A" * num_before + "/u" + "A" * 400_000
    body = text.encode()
    assert parsed_bytes(body) == 2 * len(body)
    for wide in (b"\\u", "é".encode()):
        assert parsed_bytes(body.replace(b"/u", wide)) == 4 * len(body)


@pytest.mark.parametrize(
    "text", ["A" * 499_996 + "AA==" + "AAAA", "A" * 500_000 + "A", "A" * 499_999 + "é" + "AAAA"]
)
def test_large_text_is_no_base64(text: str) -> None:
    body = json.dumps({"image": text}).encode()
    with pytest.raises(UnsupportedImage, match="not base64"):
        asyncio.run(read_body(request([body], JSON), memory(len(body))))


@pytest.mark.parametrize("declared", ["-1", "many", "1e9", "", "\xb2", "9" * 5000])
def test_any_content_length_is_handled(declared: str) -> None:
    try:
        assert read(json.dumps({"image": BASE64}).encode(), JSON, declared).image == IMAGE
    except ServiceError:
        assert int(declared[:10]) > MAX_BYTES
