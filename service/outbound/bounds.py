"""Limits on a foreign response, as it is received.

aiohttp 3.14 itself bounds the lines and fields of a head and their number, and stops reading while
a body has many unread chunks. It has no limit on interim responses, on the bytes of a response as
received, of which blank lines before the head and extensions of chunks are parts, nor on the
number of chunks: these are here. Times are the caller's: one timeout for all redirects and retries.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_MAX_INTERIM = 1
_MAX_EXTRA_BYTES = 1_000_000  # head, trailers, and the frames of chunks
_MIN_CHUNK_BYTES = 200  # a body of the maximum size, on average
_MIN_CHUNKS = 1_000


class _BoundedHandler(ResponseHandler):
    """Reads responses of a connection; one above a limit ends it."""

    def __init__(self, max_body_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._max_bytes = max_body_bytes + _MAX_EXTRA_BYTES
        self._num_bytes = 0
        self._num_interim = 0

    def set_response_params(self, **params: Any) -> None:
        """Begin the next response."""
        self._num_bytes = 0
        self._num_interim = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            self._refuse(f"more than {self._max_bytes} bytes")
        else:
            super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a head that was parsed: its body follows."""
        message, _ = data
        self._num_interim += 100 <= message.code < 200
        if self._num_interim > _MAX_INTERIM:
            self._refuse(f"more than {_MAX_INTERIM} interim response")
        else:
            super().feed_data(data, size)

    def _refuse(self, problem: str) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        error = aiohttp.ClientPayloadError(problem)
        self.set_exception(error)
        if self._payload is not None:
            self._payload.set_exception(error)
        self.transport.abort()


class BoundedConnector(aiohttp.TCPConnector):
    """Connections whose responses have a maximum size."""

    def __init__(self, max_body_bytes: int, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp 3.14 has no public way to replace the protocol of its connections
        handler: Any = partial(_BoundedHandler, max_body_bytes, loop=self._loop)
        self._factory = handler


async def body_pieces(
    response: aiohttp.ClientResponse, max_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Yield a body of at most `max_bytes`, and the piece that exceeds it.

    Raise `ClientPayloadError` if it has too many chunks.
    """
    max_chunks = _MIN_CHUNKS + max_bytes // _MIN_CHUNK_BYTES
    num_chunks = 0
    num_bytes = 0
    async for data, is_end_of_chunk in response.content.iter_chunks():
        num_chunks += is_end_of_chunk
        if num_chunks > max_chunks:
            raise aiohttp.ClientPayloadError(f"more than {max_chunks} chunks")
        num_bytes += len(data)
        yield data
        if num_bytes > max_bytes:
            return


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the first `max_bytes` of a body."""
    body = bytearray()
    async for data in body_pieces(response, max_bytes):
        body += data
    return bytes(body[:max_bytes])
