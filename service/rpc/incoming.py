"""Messages of gRPC calls, read when a method asks for them.

grpc reads the message of a call before it calls the method, so that anybody could send large ones.
Each method is therefore registered as one that receives a stream of bytes, which is the same on the
wire: a method checks the key and takes its place before it reads.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message

from service.admission.load import ClientSlots
from service.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from service.rpc.wire_values import num_values

Context = Any  # grpc.aio.ServicerContext, which has no types

_MAX_VALUES = 10_000  # the limit of a JSON body
_VALUE_BYTES = 100
_COPIES = 3  # the message, its parsed fields, and the image taken out of them
# Messages of lists, health and reflection have names only.
MAX_SMALL_BYTES = 65_536
SMALL_SLOTS = 8
SMALL_SLOTS_OF_ADDRESS = 2
_SMALL_TIMEOUT_S = 10.0


def address_of(peer: str) -> str:
    """Return the address in a peer of grpc: ipv4:HOST:PORT or ipv6:%5BHOST%5D:PORT."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


class NoMessage(InvalidRequest):
    """The caller has sent all its messages."""


class Incoming:
    """The messages of one call, which comes from `peer`."""

    def __init__(
        self,
        messages: AsyncIterator[bytes],
        message_class: type[Message],
        small: ClientSlots,
        peer: str,
    ) -> None:
        self._messages = messages
        self._message_class = message_class
        self._small = small
        self.address = address_of(peer)

    async def read(self, deadline_s: float, hold: Callable[[int], None]) -> Message:
        """Return the next message, of a call that has a place.

        Raise `InvalidRequest` or `DeadlineExceeded`.

        `hold` counts its bytes until the call ends.
        """
        message = await self._next(deadline_s)
        count = num_values(message, self._message_class.DESCRIPTOR, _MAX_VALUES)
        if count > _MAX_VALUES:
            raise InvalidRequest(
                f"the message has more than {_MAX_VALUES} fields, elements and entries"
            )
        hold(_COPIES * len(message) + _VALUE_BYTES * count)
        return self._parsed(message)

    async def read_small(self) -> Message:
        """Return the next message of a call without a place, within seconds."""
        deadline_s = time.monotonic() + _SMALL_TIMEOUT_S
        try:
            async with asyncio.timeout(_SMALL_TIMEOUT_S), self._small.slot(self.address):
                message = await self._next(deadline_s)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the call's message was not received within {_SMALL_TIMEOUT_S:g} s"
            ) from error
        if len(message) > MAX_SMALL_BYTES:
            raise PayloadTooLarge(
                f"the message has {len(message)} bytes; at most {MAX_SMALL_BYTES} are allowed"
            )
        return self._parsed(message)

    async def _next(self, deadline_s: float) -> bytes:
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                return await anext(self._messages)
        except StopAsyncIteration:
            raise NoMessage("the call has no message") from None
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the call's message was not received before the deadline"
            ) from error

    def _parsed(self, message: bytes) -> Message:
        try:
            return self._message_class.FromString(message)
        except DecodeError as error:
            raise InvalidRequest("the message is malformed: it is not one of the method") from error
