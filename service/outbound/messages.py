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

import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, Field, TypeAdapter

from service.outbound.urls import AllowedHost
from wire.runner_messages import Written

MAX_FRAME_BYTES = 8_000_000  # of the process; a completion of the maximum size takes a tenth
FRAME_HEAD = struct.Struct(">cI")

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
    allowed: list[AllowedHost]
    may_be_private: bool  # the addresses of its host
    max_bytes: int
    client: str  # has its share of look-ups
    authorization: str | None
    timeout_s: float


class DocumentCall(BaseModel):
    """Send a body, or none; the events are the response's head and at most `max_bytes` of it."""

    kind: Literal["document"] = "document"
    url: str
    headers: dict[str, str]
    max_bytes: int
    timeout_s: float


class CompletionCall(BaseModel):
    """Send a chat completion; the events are the head, the text as written, the completion."""

    kind: Literal["completion"] = "completion"
    url: str
    headers: dict[str, str]
    timeout_s: float


Call = Annotated[FileCall | DocumentCall | CompletionCall, Field(discriminator="kind")]
CALL: TypeAdapter[Call] = TypeAdapter(Call)


class ResponseHead(BaseModel):
    """Status of an HTTP response, and of an error what it says."""

    kind: Literal["head"] = "head"
    status: int
    retry_after_s: float
    message: str = ""


Event = bytes | ResponseHead | Written
_JSON_EVENT = Annotated[ResponseHead | Written, Field(discriminator="kind")]
EVENT: TypeAdapter[ResponseHead | Written] = TypeAdapter(_JSON_EVENT)


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


class OutboundCalls(Protocol):
    """Calls to foreign hosts: of the process, or of the gateway through it."""

    def run(self, call: Call, body: bytes = b"") -> AsyncGenerator[Event, None]:
        """Yield the events of a call; raise `CallError`. Closing the generator cancels the call."""


def frame(kind: FrameKind, data: bytes = b"") -> bytes:
    return FRAME_HEAD.pack(kind, len(data)) + data


@dataclass(slots=True)
class FrameSplitter:
    """Splits received bytes into frames.

    Adjacent frames of bytes become one: a stream of tiny pieces costs the gateway what it received
    at once, not the number of pieces.
    """

    rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Return kind and content of each complete frame; raise ValueError if one is too long."""
        self.rest += data
        frames: list[tuple[bytes, bytearray]] = []
        position = 0
        while len(self.rest) >= position + FRAME_HEAD.size:
            kind, length = FRAME_HEAD.unpack_from(self.rest, position)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame has {length} bytes; at most {MAX_FRAME_BYTES} may come")
            start = position + FRAME_HEAD.size
            if len(self.rest) < start + length:
                break
            position = start + length
            content = self.rest[start:position]
            if kind == b"B" and frames and frames[-1][0] == b"B":
                frames[-1][1].extend(content)
            else:
                frames.append((kind, content))
        del self.rest[:position]
        return [(kind, bytes(content)) for kind, content in frames]
