"""Messages that a method reads itself, under bounds of the service: the caller's own deadline may
be none.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_queue import ClientSlots
from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.rpc.boundary import MAX_SMALL_BYTES, Incoming, num_values, peer_address
from service.rpc.proto import vision_pb2 as pb
from tests.support.fake_service import run


def incoming(*messages: bytes, is_open: bool = False) -> Incoming:
    """Return a call with these messages; if `is_open`, its caller may send more and does not."""

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        if is_open:
            await asyncio.Event().wait()

    return Incoming(sent(), pb.PredictRequest, ClientSlots(1, 1), "192.0.2.1")


async def read(call: Incoming, timeout_s: float = 60) -> object:
    async with asyncio.timeout(60):
        slot = nullcontext()
        return await call.read(time.monotonic() + timeout_s, slot, lambda _num_bytes: None)


async def test_messages_are_parsed_in_turn() -> None:
    call = incoming(
        *(pb.PredictRequest(task=task).SerializeToString() for task in ("ocr", "captioning"))
    )
    assert await read(call) == pb.PredictRequest(task="ocr")
    assert await call.read_small() == pb.PredictRequest(task="captioning")
    assert await read(call) is None
    assert await call.read_small() is None


def test_late_message_ends_the_call() -> None:
    with pytest.raises(DeadlineExceeded, match="was not received before the deadline"):
        run(read(incoming(is_open=True), 0.05))


def test_small_message_is_limited() -> None:
    largest = pb.PredictRequest(image=bytes(MAX_SMALL_BYTES - 4))
    assert run(incoming(largest.SerializeToString()).read_small()) == largest
    larger = pb.PredictRequest(image=bytes(MAX_SMALL_BYTES - 3)).SerializeToString()
    with pytest.raises(ServiceError, match="has 65537 bytes; at most 65536 are allowed"):
        run(incoming(larger).read_small())


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:192.0.2.1:50000", "192.0.2.1"), ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1")],
)
def test_address_has_no_port(peer: str, address: str) -> None:
    assert peer_address(peer) == address


PREDICT = pb.PredictRequest(
    image=b"\xff" * 1000,
    task="ocr",
    labels=["a", "b", ""],
    region=[1, 2, 3, 4],
    temperature=0.5,
    max_new_tokens=300,
)
ANALYZE = pb.AnalyzeRequest(
    image=b"\x08" * 500,
    steps=[
        pb.Step(id="a", task="ocr", region=[1, 2, 3, 4]),
        pb.Step(labels=["", "b"]),
    ],
)


def count(message: Message, maximum: int = 10_000) -> int:
    return num_values(message.SerializeToString(), message.DESCRIPTOR, maximum)


def test_values_are_counted() -> None:
    # image, task, three labels, temperature, max_new_tokens; the packed region has one field of 32
    # bytes.
    assert count(PREDICT) == 7 + 1 + 32
    # The image; a step with id, task and a packed region; a step with two labels.
    assert count(ANALYZE) == 1 + (1 + 2 + 1 + 32) + (1 + 2)


@pytest.mark.parametrize(
    "message",
    [
        pb.PredictRequest(labels=[""] * 20_000),
        pb.PredictRequest(region=[0.0] * 20_000),
        pb.AnalyzeRequest(steps=[pb.Step()] * 20_000),
        pb.AnalyzeRequest(steps=[pb.Step(region=[1] * 20_000)]),
    ],
)
def test_number_of_values_is_limited(message: Message) -> None:
    async def messages() -> AsyncIterator[bytes]:
        yield message.SerializeToString()

    class NeverParsed:
        DESCRIPTOR: Any = message.DESCRIPTOR

        @staticmethod
        def FromString(_data: bytes) -> Message:
            raise AssertionError("the message is parsed")

    message_class: Any = NeverParsed
    incoming = Incoming(messages(), message_class, ClientSlots(1, 1), "127.0.0.1")
    with pytest.raises(InvalidRequest, match="more than 10000 fields, elements and entries"):
        run(read(incoming))


@given(st.binary(max_size=300))
def test_any_bytes_can_be_counted(data: bytes) -> None:
    num = num_values(data, pb.AnalyzeRequest.DESCRIPTOR, 10_000)
    try:
        message = pb.AnalyzeRequest.FromString(data)
    except DecodeError:
        return
    assert num >= len(message.ListFields())
    assert num >= len(message.steps) + len(message.images)
