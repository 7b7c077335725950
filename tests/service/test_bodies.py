import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.bodies import RequestBody, read_body
from service.errors import InvalidRequest, PayloadTooLarge, ServiceError, UnsupportedImage

MAX_BYTES = 100_000
FORM = "multipart/form-data; boundary=b"
JSON = "application/json"
IMAGE = b"\x89PNG\r\n\x1a\n\0\xff any bytes"
BASE64 = base64.b64encode(IMAGE).decode()


def request(chunks: Iterable[bytes], content_type: str | None, content_length: str | None = None) -> Request:
    """Return a request as a server would hand it over, its body in chunks."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    unsent = iter([*messages, {"type": "http.request"}])
    given = [(b"content-type", content_type), (b"content-length", content_length)]
    headers = [(name, value.encode("latin-1")) for name, value in given if value is not None]

    async def receive() -> Message:
        return next(unsent)

    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, receive)


def read(body: bytes, content_type: str | None, content_length: str | None = None) -> RequestBody:
    return asyncio.run(read_body(request([body], content_type, content_length), MAX_BYTES))


def read_json(**fields: object) -> RequestBody:
    return read(json.dumps(fields).encode(), JSON)


def part(name: str, value: bytes | str, options: str = "") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{options}\r\n\r\n'.encode() + data + b"\r\n"


def file_part(name: str, data: bytes) -> bytes:
    return part(name, data, '; filename="f.png"')


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def read_form(*parts: bytes) -> RequestBody:
    return read(form(file_part("image", IMAGE), *parts), FORM)


FIELDS: dict[str, Any] = {
    "task": "open_vocabulary_detection",
    "model": "florence-2-mini",
    "labels": ["red circle", "Käfer"],
    "region": [1, 2.5, 30, 40],
    "max_new_tokens": 12,
    "temperature": 0.5,
    "seed": 7,
    "num_beams": 1,
    "question": "7",
}


def parts_of(name: str, value: object, is_json: bool) -> Sequence[bytes]:
    if isinstance(value, list):
        return [part(name, json.dumps(value))] if is_json else [part(name, str(item)) for item in value]
    return [part(name, str(value))]


@pytest.mark.parametrize("is_json", [True, False], ids=["lists as JSON", "lists as repeated fields"])
def test_form_and_json_give_the_same_body(is_json: bool) -> None:
    parts = [one for name, value in FIELDS.items() for one in parts_of(name, value, is_json)]
    from_form, from_json = read_form(*parts), read_json(image=BASE64, **FIELDS)
    assert from_form == from_json == RequestBody(IMAGE, FIELDS)
    assert [type(v) for v in from_form.fields.values()] == [type(v) for v in from_json.fields.values()]


def test_body_in_many_chunks_is_the_body() -> None:
    body = form(file_part("image", IMAGE), part("task", "ocr"))
    chunks = [body[i : i + 1] for i in range(len(body))]
    assert asyncio.run(read_body(request(chunks, FORM), MAX_BYTES)) == RequestBody(IMAGE, {"task": "ocr"})


@pytest.mark.parametrize("content_type", [JSON, "APPLICATION/JSON", "application/json; charset=utf-8"])
def test_json_content_type_is_read_without_case_and_options(content_type: str) -> None:
    assert read(json.dumps({"image": BASE64}).encode(), content_type) == RequestBody(IMAGE, {})


@pytest.mark.parametrize("value", ["twelve", "1e", "", "true", "null", "[1]", "NaN", "Infinity", "0x10", "9" * 5000])
def test_form_number_that_is_none_stays_text_for_the_check_of_fields(value: str) -> None:
    assert read_form(part("seed", value)).fields == {"seed": value}


@pytest.mark.parametrize("value", ["true", "12", "null", '{"a": 1}'])
def test_form_text_stays_text(value: str) -> None:
    assert read_form(part("question", value)).fields == {"question": value}


def test_one_label_is_a_list_in_a_form() -> None:
    assert read_form(part("labels", "dog")).fields == {"labels": ["dog"]}


@pytest.mark.parametrize("value", ["[1, 2", "[NaN]", "[Infinity, 1, 2, 3]", "[" * 50_000])
def test_form_list_that_is_broken_json_is_refused_by_name(value: str) -> None:
    with pytest.raises(InvalidRequest, match="region") as caught:
        read_form(part("region", value))
    assert caught.value.param == "region"


# The image


@pytest.mark.parametrize(
    "image",
    [BASE64, f"data:image/png;base64,{BASE64}", f"DATA:image/webp;charset=x;BASE64,{BASE64}", f"data:;base64,{BASE64}"],
)
def test_image_is_a_data_url_or_bare_base64(image: str) -> None:
    assert read_json(image=image).image == IMAGE
    assert read(form(part("image", image)), FORM).image == IMAGE


@pytest.mark.parametrize("image", ["data:image/png,abc", "data:image/png;utf8,abc", "data:image/png;base64", "data:"])
def test_data_url_that_is_not_base64_is_refused(image: str) -> None:
    with pytest.raises(InvalidRequest, match="not base64") as caught:
        read_json(image=image)
    assert caught.value.param == "image"


@pytest.mark.parametrize("image", ["http://example.org/a.png", "https://example.org/a.png", "HTTPS://example.org"])
def test_url_of_an_image_is_refused_as_such(image: str) -> None:
    with pytest.raises(InvalidRequest, match="image is a URL, and this service reads none"):
        read_json(image=image)


@pytest.mark.parametrize("image", ["QUJ", "Q!JD", "QUJD\u00e4", "\ud800", "file:///etc/passwd", "_-_-", "a,b", "="])
def test_image_that_is_not_base64_is_unsupported(image: str) -> None:
    with pytest.raises(UnsupportedImage, match="not base64") as caught:
        read_json(image=image)
    assert caught.value.param == "image"


@pytest.mark.parametrize("image", [None, 1, True, ["QUJD"], {"url": "x"}])
def test_image_in_json_must_be_a_text(image: object) -> None:
    with pytest.raises(InvalidRequest, match="image must be a text"):
        read_json(image=image)


def test_missing_image_is_named() -> None:
    for body, content_type in [(b"{}", JSON), (form(part("task", "ocr")), FORM), (form(), FORM)]:
        with pytest.raises(InvalidRequest, match="image is missing") as caught:
            read(body, content_type)
        assert caught.value.param == "image"


def test_empty_file_is_an_empty_image() -> None:
    assert read(form(file_part("image", b"")), FORM).image == b""


@pytest.mark.parametrize("second", [file_part("image", IMAGE), part("image", BASE64)])
def test_second_image_is_refused_as_such(second: bytes) -> None:
    with pytest.raises(InvalidRequest, match="image is there more than once") as caught:
        read_form(second)
    assert caught.value.param == "image"


# Fields twice, fields as files


@pytest.mark.parametrize("name", ["task", "seed", "question", "unknown"])
def test_form_field_given_twice_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} is there 2 times") as caught:
        read_form(part(name, "1"), part(name, "2"))
    assert caught.value.param == name


def test_json_key_given_twice_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="task"):
        read(b'{"image": "QUJD", "task": "ocr", "task": "captioning"}', JSON)


@pytest.mark.parametrize("name", ["task", "labels", "seed"])
def test_field_that_is_a_file_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} is a file; only image may be one") as caught:
        read_form(file_part(name, b"x"))
    assert caught.value.param == name


# What is no body of these types


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_content_types_are_refused_with_the_known_ones(content_type: str | None) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data or application/json"):
        read(b"{}", content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(file_part("image", IMAGE)), "multipart/form-data"),
        (form(file_part("image", IMAGE)), "multipart/form-data; boundary="),
        (form(file_part("image", IMAGE)), f"multipart/form-data; boundary={'b' * 5000}"),
        (form(file_part("image", IMAGE)), "multipart/form-data; boundary=\xe9"),
        (b"not multipart at all", FORM),
        (b"--b\r\n\r\n\r\nx\r\n--b--\r\n", FORM),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", FORM),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, FORM),
        (form(*[part(f"f{i}", "x") for i in range(500)]), FORM),
        (b"", FORM),
    ],
)
def test_broken_multipart_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        read(body, content_type)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.85, 0.95])
def test_multipart_without_its_end_is_refused(kept: float) -> None:
    """What was cut off may be the very field that matters."""
    body = form(file_part("image", IMAGE), part("task", "captioning"), part("detail", "paragraph"), part("seed", "1"))
    with pytest.raises(InvalidRequest):
        read(body[: int(len(body) * kept)], FORM)


def test_charset_of_a_form_cannot_make_reading_slow() -> None:
    """Python's punycode decoder takes a time that grows with the square of the length, on the event loop."""
    body = form(part("image", IMAGE, '; filename="a"'), part("ab", b"abc-" + b"ab1c" * 50_000))
    start_s = time.monotonic()
    with contextlib.suppress(InvalidRequest):  # refused is as good as read
        asyncio.run(read_body(request([body], f"{FORM}; charset=punycode"), 2 * len(body)))
    assert time.monotonic() - start_s < 0.3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\xff",
        b'{"image": "QUJD"} x',
        b"[" * 100_000,
        b'{"image": "QUJD", "task": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"a":' * 19_000,
        b'{"image": "QUJD", "seed": ' + b"9" * 5000 + b"}",
        b'{"image": "QUJD", "seed": NaN}',
        b'{"image": "QUJD", "region": [Infinity, -Infinity, 1, 2]}',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON") as caught:
        read(body, JSON)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("document", ["[]", "1", "null", '"text"'])
def test_json_that_is_no_object_is_refused(document: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read(document.encode(), JSON)


# Limits


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_body_declared_too_large_is_refused_before_it_is_read(content_type: str) -> None:
    async def never() -> Message:
        raise AssertionError("the body was read")

    headers = [(b"content-type", content_type.encode()), (b"content-length", str(MAX_BYTES + 1).encode())]
    unread = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, never)
    with pytest.raises(PayloadTooLarge, match=f"over {MAX_BYTES} bytes"):
        asyncio.run(read_body(unread, MAX_BYTES))


def test_body_that_grows_too_large_is_refused_while_it_streams() -> None:
    num_read = 0

    async def read_endless() -> None:
        async def chunks() -> AsyncGenerator[Message, None]:
            nonlocal num_read
            while True:
                num_read += 1
                yield {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        endless = chunks()
        headers = [(b"content-type", JSON.encode())]
        streamed = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, endless.__anext__)
        try:
            await read_body(streamed, MAX_BYTES)
        finally:
            await endless.aclose()

    with pytest.raises(PayloadTooLarge):
        asyncio.run(read_endless())
    assert num_read == MAX_BYTES // 1000 + 1


def test_body_of_exactly_the_limit_is_read() -> None:
    body = json.dumps({"image": BASE64}).encode().ljust(MAX_BYTES)
    assert read(body, JSON, str(MAX_BYTES)).image == IMAGE


@pytest.mark.parametrize("declared", ["-1", "many", "1e9", "", "\xb2", "9" * 5000])
def test_odd_content_length_is_no_defect_of_the_service(declared: str) -> None:
    try:
        assert read(json.dumps({"image": BASE64}).encode(), JSON, declared).image == IMAGE
    except PayloadTooLarge:
        assert int(declared[:10]) > MAX_BYTES


@pytest.mark.parametrize("charset", ["undefined", "\0", "base64", "utf-16", "\xe4", ""])
def test_odd_charset_of_a_form_is_no_defect_of_the_service(charset: str) -> None:
    assert is_read_or_refused(form(file_part("image", IMAGE)), f"{FORM}; charset={charset}")


# Anything at all

FORM_PIECES = st.sampled_from(
    [
        *(b"--b", b"--b--", b"\r\n", b"\n", b"\r", b"--", b"\0", b"\xff", b": ", b"name=", b'"', b"[1", b'["a"]'),
        *(b'Content-Disposition: form-data; name="image"', b'; filename="f"'),
        b'Content-Disposition: form-data; name="labels"',
    ]
)
JSON_PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"image"',
        b":",
        b",",
        b'"QUJD"',
        b'"task"',
        b"1",
        b"1e999",
        b"NaN",
        b"null",
        b'"\\ud800"',
    ]
)


def is_read_or_refused(body: bytes, content_type: str) -> bool:
    """Say whether the bytes are a body or an error of the service's tree; anything else escapes."""
    try:
        return isinstance(read(body, content_type), RequestBody)
    except ServiceError as error:
        return bool(error.message)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(FORM_PIECES, max_size=30).map(b"".join)))
@example(b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n')
def test_any_bytes_are_a_form_or_an_error_of_the_service(body: bytes) -> None:
    assert is_read_or_refused(body, FORM)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(JSON_PIECES, max_size=30).map(b"".join)))
@example(b'{"image": "\\ud800"}')
def test_any_bytes_are_json_or_an_error_of_the_service(body: bytes) -> None:
    assert is_read_or_refused(body, JSON)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_content_type_is_read_or_an_error_of_the_service(options: str) -> None:
    assert is_read_or_refused(form(file_part("image", IMAGE)), f"multipart/form-data;{options}")
