"""HTTP connections to a model's runner: a Unix socket of the supervisor on this host, TCP elsewhere.

Calls raise aiohttp's errors, or `FeaturesMissing`. A cancelled call closes its connection, which ends it in the runner.
"""

import io
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import aiohttp
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter

from runners.telemetry.tracing import call_headers, span
from runners.transport.build_guard import BUILD_HEADER
from runners.transport.messages import AdapterStates, Outcomes, SequenceSpec, WriteCall, WritingEvent
from runners.transport.pixels import IMAGE_KEY_HEADER, Pixels, body_of, in_memory

# Below the 5 s after which a runner's uvicorn closes an idle connection: no request is sent on one that is closing.
_KEEP_ALIVE_S = 4.0
_CONNECT_S = 2.0  # an unreachable host does not refuse connections
_EVENT: TypeAdapter[WritingEvent] = TypeAdapter(WritingEvent)


class FeaturesMissing(Exception):
    """The runner has no features under the image key; call again with pixels."""


@dataclass(frozen=True, slots=True)
class RunnerCall:
    """Sequences of one image; `pixels` (H, W, 3) if the runner has no features of it."""

    image_key: str
    sequences: Sequence[SequenceSpec]
    pixels: Pixels | None = None


class RunnerChannel:
    """Calls to `url`: `file://PATH` of a Unix socket, with pixels in shared memory; or `tcp://` or `http://HOST:PORT`."""

    def __init__(self, url: str, build_key: str, timeout_s: float) -> None:
        self.url = url
        self._socket_path = unquote(urlsplit(url).path) if url.startswith("file:") else None
        self._headers = {BUILD_HEADER: build_key}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def write(self, call: RunnerCall) -> Outcomes:
        """Return the outcome of each sequence."""
        async with self._response("/write", call) as response:
            return Outcomes.model_validate_json(await response.read())

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is written, and its outcome; closing the generator ends them."""
        async with self._response("/stream", call) as response:
            async for line in _lines(response.content.iter_any()):
                yield _EVENT.validate_json(line)

    async def is_ready(self, timeout_s: float) -> bool:
        """Return True if the runner reports within `timeout_s` seconds that it is ready."""
        try:
            timeout = aiohttp.ClientTimeout(timeout_s)
            async with self._client().get("/readyz", timeout=timeout) as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def adapters(self, timeout_s: float) -> AdapterStates | None:
        """Return the adapters of the runner; None without an answer within `timeout_s` seconds."""
        try:
            timeout = aiohttp.ClientTimeout(timeout_s)
            async with self._client().get("/adapters", timeout=timeout) as response:
                response.raise_for_status()
                return AdapterStates.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def close(self) -> None:
        """Close idle connections; make no call after that."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _response(self, path: str, call: RunnerCall) -> AsyncIterator[aiohttp.ClientResponse]:
        shared = None if self._socket_path is None else call.pixels
        with (
            nullcontext() if shared is None else in_memory(shared) as memory,
            span(f"POST {path}", kind=SpanKind.CLIENT),
        ):
            message = WriteCall(sequences=list(call.sequences), pixels=memory)
            body, headers = body_of(message, call.pixels if shared is None else None)
            headers |= {IMAGE_KEY_HEADER: call.image_key} | call_headers()
            async with self._client().post(path, data=io.BytesIO(body), headers=headers) as response:
                if response.status == HTTPStatus.NOT_FOUND and call.pixels is None:
                    await response.read()  # unread, it would cost the connection
                    raise FeaturesMissing
                response.raise_for_status()
                yield response

    def _client(self) -> aiohttp.ClientSession:
        """Return the session, created in the event loop of the first call."""
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket_path is None:
                base_url = self.url.replace("tcp://", "http://", 1)
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            else:
                base_url = "http://runner"
                connector = aiohttp.UnixConnector(self._socket_path, limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            timeout = aiohttp.ClientTimeout(self._timeout_s, sock_connect=_CONNECT_S)
            self._session = aiohttp.ClientSession(base_url, headers=self._headers, connector=connector, timeout=timeout)
        return self._session


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield lines of any length as they arrive (aiohttp 3.14's own `readline` has a limit)."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
