"""The runners' services as the gateway calls them: one JSON message there, one back.

BentoML 1.4.40's own client sends pickles between services and derives an answer's type from its JSON schema, again for
every answer. It also closes a session every 100 requests and every 300 s, with all requests that are in flight on it.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, TypeAdapter

from runners.messages import (
    AnyArray,
    Encoded,
    EncodeOutcome,
    ImageToEncode,
    MemoryAddress,
    Outcomes,
    SequenceSpec,
    WritingEvent,
)
from runners.tracing import call_headers, span
from service.runner_connections import Connection

_HEADERS = {"Content-Type": "application/json"}
_CLAIM: TypeAdapter[bool] = TypeAdapter(bool)
_EVENT: TypeAdapter[WritingEvent] = TypeAdapter(WritingEvent)


class _EncodeCall(BaseModel):
    image: ImageToEncode


class _WriteCall(BaseModel):
    image_features: AnyArray
    sequences: list[SequenceSpec]


class _CanOpenCall(BaseModel):
    memory: MemoryAddress


class RunnerCalls:
    """What an encoder and a decoder have in common.

    A call raises aiohttp's errors; one that is cancelled closes its connection.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def can_open(self, memory: MemoryAddress) -> bool:
        """Say whether arrays in this memory can be sent there."""
        return _CLAIM.validate_json(await self._call("can_open", _CanOpenCall(memory=memory)))

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the service answers within `timeout` seconds."""
        return await self._connection.is_ready(timeout)

    async def close(self) -> None:
        """Close idle connections; nothing is asked after that."""
        await self._connection.close()

    async def _call(self, api: str, message: BaseModel) -> bytes:
        async with self._answer(api, message) as response:
            return await response.read()

    @asynccontextmanager
    async def _answer(self, api: str, message: BaseModel) -> AsyncIterator[aiohttp.ClientResponse]:
        session = await self._connection.session()
        with span(f"POST /{api}", kind=SpanKind.CLIENT):
            headers = _HEADERS | call_headers()
            async with session.post(f"/{api}", data=message.model_dump_json().encode(), headers=headers) as response:
                response.raise_for_status()
                yield response


class EncoderCalls(RunnerCalls):
    """An encoder service."""

    async def encode(self, image: ImageToEncode) -> EncodeOutcome:
        """Return the image's features, or why there are none."""
        return Encoded.model_validate_json(await self._call("encode", _EncodeCall(image=image))).outcome


class DecoderCalls(RunnerCalls):
    """A decoder service."""

    async def write(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> Outcomes:
        """Return what became of each sequence. A caller that is cancelled ends them."""
        call = _WriteCall(image_features=image_features, sequences=sequences)
        return Outcomes.model_validate_json(await self._call("write", call))

    async def stream(
        self, image_features: AnyArray, sequences: list[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is written, and what became of each; closed, it ends them."""
        call = _WriteCall(image_features=image_features, sequences=sequences)
        async with self._answer("stream", call) as response:
            async for line in _lines(response.content.iter_any()):
                if line:
                    yield _EVENT.validate_json(line)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines of a body as they come, of any length (aiohttp 3.14's own reading of lines has a limit)."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
