"""The channel to a runner over HTTP: a Unix socket of the supervisor on this host, TCP elsewhere.

A cancelled call closes its connection, which ends it in the runner. aiohttp's errors and the
statuses of runners and proxies become the errors of wire/runner_channel.py here.
"""

import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from opentelemetry.trace import INVALID_SPAN, SpanKind
from pydantic import TypeAdapter

from wire.pixels import BUILD_HEADER, IMAGE_KEY_HEADER, body_of, in_memory
from wire.runner_channel import (
    CallBroken,
    CallTimedOut,
    ChannelError,
    FeaturesMissing,
    RunnerCall,
    RunnerUnreachable,
)
from wire.runner_messages import AdapterStates, Outcomes, WriteCall, WritingEvent
from wire.telemetry.tracing import PROPAGATOR, span

# Below the 5 s after which a runner's uvicorn closes an idle connection: no request is sent on one
# that is closing.
_KEEP_ALIVE_S = 4.0
_CONNECT_S = 2.0  # an unreachable host does not refuse connections
_PROBE_TIMEOUT = aiohttp.ClientTimeout(1.0)
# A proxy answers the first two where a runner died with a call that the proxy could not replay, or
# has no runner for a moment.
_ERRORS = {502: CallBroken, 503: RunnerUnreachable, 504: CallTimedOut}
_MAX_WHOLE_BYTES = 1_000_000  # sent at once, in two thirds of the processor time
_EVENT: TypeAdapter[WritingEvent] = TypeAdapter(WritingEvent)


class HttpChannel:
    """Calls to `url`: `file://PATH` of a Unix socket, `tcp://` or `http://HOST:PORT`."""

    def __init__(self, url: str, build_key: str, timeout_s: float) -> None:
        self.url = url
        self._socket_path = unquote(urlsplit(url).path) if url.startswith("file:") else None
        self._headers = {BUILD_HEADER: build_key}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def write(self, call: RunnerCall) -> Outcomes:
        async with self._response("/write", call) as response:
            return Outcomes.model_validate_json(await response.read())

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        async with self._response("/stream", call) as response:
            rest = b""
            # lines of any length: aiohttp 3.14's own `readline` has a limit
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield _EVENT.validate_json(line)

    async def is_ready(self) -> bool:
        return await self._probe("/readyz") is not None

    async def adapters(self) -> AdapterStates | None:
        body = await self._probe("/adapters")
        return None if body is None else AdapterStates.model_validate_json(body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _probe(self, path: str) -> bytes | None:
        try:
            session = self._session or self._open_session()
            async with session.get(path, timeout=_PROBE_TIMEOUT) as response:
                response.raise_for_status()
                return await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None

    @asynccontextmanager
    async def _response(self, path: str, call: RunnerCall) -> AsyncIterator[aiohttp.ClientResponse]:
        shared = None if self._socket_path is None else call.pixels
        shared_memory = nullcontext() if shared is None else in_memory(shared)
        try:
            with shared_memory as memory, span(f"POST {path}", kind=SpanKind.CLIENT) as call_span:
                message = WriteCall(sequences=list(call.sequences), pixels=memory)
                body, headers = body_of(message, call.pixels if memory is None else None)
                headers[IMAGE_KEY_HEADER] = call.image_key
                if call_span is not INVALID_SPAN:
                    PROPAGATOR.inject(headers)
                # aiohttp sends a file in pieces, and warns of long bytes
                data = body if len(body) <= _MAX_WHOLE_BYTES else io.BytesIO(body)
                session = self._session or self._open_session()
                posted = session.post(path, data=data, headers=headers)
                async with posted as response:
                    if response.status == HTTPStatus.NOT_FOUND and call.pixels is None:
                        await response.read()  # unread, it would cost the connection
                        raise FeaturesMissing
                    response.raise_for_status()
                    yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _channel_error(error) from error

    def _open_session(self) -> aiohttp.ClientSession:
        options: dict[str, Any] = {"limit": 0, "keepalive_timeout": _KEEP_ALIVE_S}
        connector: aiohttp.BaseConnector
        if self._socket_path is None:
            base_url = self.url.replace("tcp://", "http://", 1)
            connector = aiohttp.TCPConnector(**options)
        else:
            base_url = "http://runner"
            connector = aiohttp.UnixConnector(self._socket_path, **options)
        self._session = aiohttp.ClientSession(
            base_url,
            headers=self._headers,
            connector=connector,
            timeout=aiohttp.ClientTimeout(self._timeout_s, sock_connect=_CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session


def _channel_error(error: aiohttp.ClientError | TimeoutError) -> ChannelError:
    if isinstance(error, aiohttp.ClientResponseError):
        kind = _ERRORS.get(error.status, ChannelError)
        return kind(f"status {error.status}")
    # the latter is a TimeoutError, too
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return RunnerUnreachable(repr(error))
    if isinstance(error, TimeoutError):
        return CallTimedOut(repr(error))
    return CallBroken(repr(error))
