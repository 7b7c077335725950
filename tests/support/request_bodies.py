"""Hand-written request bodies, and what the service reads from them."""

import asyncio
from collections.abc import Iterable

from starlette.requests import Request
from starlette.types import Message

from service.http.body import BodyMemory, RequestBody, read_body

MAX_BYTES = 100_000
FORM = "multipart/form-data; boundary=b"
JSON = "application/json"
IMAGE = b"\x89PNG\r\n\x1a\n\0\xff any bytes"


def request(
    chunks: Iterable[bytes], content_type: str | None, content_length: str | None = None
) -> Request:
    """Return a request as a server passes it on, with its body in chunks."""
    unsent = iter(chunks)
    values = {b"content-type": content_type, b"content-length": content_length}
    headers = [(name, text.encode("latin-1")) for name, text in values.items() if text is not None]

    async def receive() -> Message:
        chunk = next(unsent, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def memory(max_bytes: int = MAX_BYTES) -> BodyMemory:
    """Return memory for one body whose bytes nobody counts."""
    return BodyMemory(max_bytes, lambda _num_bytes: None)


def read(body: bytes, content_type: str | None, content_length: str | None = None) -> RequestBody:
    return asyncio.run(read_body(request([body], content_type, content_length), memory()))


def part(name: str, value: bytes | str, options: str = "") -> bytes:
    data = value.encode() if isinstance(value, str) else value
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{options}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def file_part(name: str, data: bytes) -> bytes:
    return part(name, data, '; filename="f.png"')


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"
