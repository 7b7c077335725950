import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import PayloadTooLarge
from service.http.body import read_body
from tests.support.request_bodies import BASE64, FORM, IMAGE, JSON, MAX_BYTES, read


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_body_declared_too_large_is_rejected_before_it_is_read(content_type: str) -> None:
    async def never() -> Message:
        raise AssertionError("the body was read")

    headers = [(b"content-type", content_type.encode()), (b"content-length", str(MAX_BYTES + 1).encode())]
    unread = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, never)
    with pytest.raises(PayloadTooLarge, match=f"exceeds the limit of {MAX_BYTES} bytes"):
        asyncio.run(read_body(unread, MAX_BYTES))


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
