import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import InvalidRequest, PayloadTooLarge, UnsupportedImage
from service.http.body import read_body
from service.http.json_values import json_object
from tests.support.request_bodies import (
    BASE64,
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


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_body_declared_too_large_is_rejected_before_it_is_read(content_type: str) -> None:
    async def never() -> Message:
        raise AssertionError("the body was read")

    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(MAX_BYTES + 1).encode()),
    ]
    unread = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, never)
    with pytest.raises(PayloadTooLarge, match=f"exceeds the limit of {MAX_BYTES} bytes"):
        asyncio.run(read_body(unread, memory()))


def test_oversized_body_is_rejected_while_it_streams() -> None:
    num_read = 0

    async def read_endless() -> None:
        async def chunks() -> AsyncGenerator[Message, None]:
            nonlocal num_read
            while True:
                num_read += 1
                yield {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        endless = chunks()
        headers = [(b"content-type", JSON.encode())]
        streamed = Request(
            {"type": "http", "method": "POST", "path": "/", "headers": headers}, endless.__anext__
        )
        try:
            await read_body(streamed, memory())
        finally:
            await endless.aclose()

    with pytest.raises(PayloadTooLarge):
        asyncio.run(read_endless())
    assert num_read == MAX_BYTES // 1000 + 1


def test_body_of_exactly_the_limit_is_read() -> None:
    body = json.dumps({"image": BASE64}).encode().ljust(MAX_BYTES)
    assert read(body, JSON, str(MAX_BYTES)).image == IMAGE


@pytest.mark.parametrize("num_bytes", [499_999, 500_000, 500_001, 1_500_000])
def test_large_base64_is_decoded_as_a_whole(num_bytes: int) -> None:
    image = bytes(range(256)) * (num_bytes // 256 + 1)
    body = json.dumps({"image": base64.b64encode(image).decode()}).encode()
    assert asyncio.run(read_body(request([body], JSON), memory(len(body)))).image == image


@pytest.mark.parametrize(
    "text", ["A" * 499_996 + "AA==" + "AAAA", "A" * 500_000 + "A", "A" * 499_999 + "é" + "AAAA"]
)
def test_large_text_that_is_not_base64_is_refused(text: str) -> None:
    body = json.dumps({"image": text}).encode()
    with pytest.raises(UnsupportedImage, match="not base64"):
        asyncio.run(read_body(request([body], JSON), memory(len(body))))


def test_base64_with_escaped_slashes_is_read_and_a_string_of_escapes_refused() -> None:
    body = b'{"image": "' + rb"\/\/\/\/" * 400_000 + b'"}'
    assert (
        asyncio.run(read_body(request([body], JSON), memory(len(body)))).image
        == b"\xff" * 1_200_000
    )
    body = b'{"image": "' + rb"\/\/\/\/" * 600_000 + b'"}'
    with pytest.raises(InvalidRequest, match="more than 2000000 escapes"):
        asyncio.run(read_body(request([body], JSON), memory(len(body))))


@pytest.mark.parametrize(
    "before", [b'{"image": "', b'{"seed":', b'{"a": "' + b"A" * 499_990 + b'", "seed": ', b"["]
)
@pytest.mark.parametrize(
    "number",
    [b"1" * 1001, b"0." + b"3" * 1000, b"-1e" + b"9" * 1000],
    ids=["int", "float", "exponent"],
)
def test_a_long_number_of_a_large_body_is_refused_but_not_in_a_string(
    before: bytes, number: bytes
) -> None:
    is_string = before.endswith(b'"')
    body = before + number + (b'"' if is_string else b"") + b', "rest": "' + b"A" * 300_000 + b'"}'
    with pytest.raises((InvalidRequest, UnsupportedImage)) as raised:
        asyncio.run(read_body(request([body], JSON), memory(len(body))))
    assert (
        "a number of the body has more than 1000 characters" in str(raised.value)
    ) is not is_string


def test_a_long_number_at_the_start_of_a_large_body_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a number of the body has more than 1000 characters"):
        json_object(b"1" * 300_000)


@pytest.mark.parametrize("filling", [b"a", b"\r", b"-", b"\r\n--", b"\r\n--bb"])
def test_a_large_form_does_not_hold_the_event_loop(filling: bytes) -> None:
    body = form(part("task", filling * (10_000_000 // len(filling))), file_part("image", IMAGE))
    start_s = time.process_time()
    with contextlib.suppress(InvalidRequest):  # refused is as good as read
        asyncio.run(read_body(request([body], FORM), memory(len(body))))
    assert time.process_time() - start_s < 0.3
