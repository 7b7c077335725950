"""The messages between the gateway and the process of outbound calls.

A connection is one call; closing it cancels the call. The gateway sends two frames: the call as
JSON and the body of its HTTP request. The process answers with frames, the last of them an end or
an error; without one, the call is lost.

    frame   its kind (1 byte), its length (4 bytes, big-endian), that many bytes
    J       an event, as JSON
    B       bytes of a file or a document; text of a completion, in UTF-8
    E       the end
    F       the error, as JSON
"""

import asyncio
import struct
from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, TypeAdapter

from service.outbound.urls import AllowedHost
from wire.runner_messages import Written

_HEAD = struct.Struct(">cI")

FrameKind = Literal[b"J", b"B", b"E", b"F"]
ErrorReason = Literal[
    "invalid_request",  # the client's URL, or its host
    "payload_too_large",
    "overloaded",
    "unreachable",  # no connection, or it ended before the response
    "broken",  # the response is malformed, incomplete, or above a limit
    "rejected",  # the engine reports an error instead of a completion
    "broke_off",  # ... within a completion
    "lost",  # the process ended, or did not answer in time
]


class FileCall(BaseModel):
    """Get an image file; its events are bytes. The body is empty."""

    kind: Literal["file"] = "file"
    url: str
    headers: dict[str, str]  # every host receives them
    timeout_s: float
    max_bytes: int
    allowed: list[AllowedHost]
    may_be_private: bool  # the addresses of its host
    client: str  # has its share of look-ups


class HttpCall(BaseModel):
    """Get a URL, or post a body. The events are the head of the response, then bytes.

    Of a completion they are the text as it is written, and the last event is the whole.
    """

    kind: Literal["document", "completion"]
    url: str
    headers: dict[str, str]
    timeout_s: float
    max_bytes: int = 4_000_000  # a document is cut


class ResponseHead(BaseModel):
    """Status of an HTTP response, and of an error what it says."""

    kind: Literal["head"] = "head"
    status: int
    retry_after_s: float
    message: str = ""


class CallFailure(BaseModel):
    """The error that ends a call."""

    reason: ErrorReason
    message: str


class CallError(Exception):
    """A call failed. The message of `invalid_request`, `payload_too_large` and `overloaded` is for
    the client, that of `rejected` and `broke_off` is the engine's, others are for the log.
    """

    def __init__(self, reason: ErrorReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


Call = FileCall | HttpCall
Event = bytes | ResponseHead | Written
CALL: TypeAdapter[Call] = TypeAdapter(Annotated[Call, Field(discriminator="kind")])
EVENT: TypeAdapter[ResponseHead | Written] = TypeAdapter(
    Annotated[ResponseHead | Written, Field(discriminator="kind")]
)


class OutboundCalls(Protocol):
    """Calls to foreign hosts: of the process, or of the gateway through it."""

    def run(self, call: Call, body: bytes = b"") -> AsyncGenerator[Event, None]:
        """Yield the events of a call; raise `CallError`. Closing the generator cancels the call."""


def frame(kind: FrameKind, data: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(data)) + data


async def read_frame(reader: asyncio.StreamReader, max_bytes: int) -> tuple[bytes, bytes]:
    """Return kind and content of the next frame; raise ValueError if it is too long or cut."""
    try:
        kind, length = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if length > max_bytes:
            raise ValueError(f"a frame has {length} bytes; at most {max_bytes} are allowed")
        return kind, await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise ValueError("the other side ended before the call") from error
