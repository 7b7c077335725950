"""Messages that a method reads itself, under bounds of the service: the caller's own deadline may
be none.
"""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from service.admission.fair_queue import ClientSlots
from service.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from service.rpc.incoming import MAX_SMALL_BYTES, Incoming, NoMessage
from service.rpc.proto import vision_pb2 as pb
from tests.support.core_calls import run


def incoming(
    *messages: bytes, is_open: bool = False, peer: str = "ipv4:192.0.2.1:50000"
) -> Incoming:
    """Return a call with these messages; if `is_open`, its caller may send more and does not."""

    async def sent() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        if is_open:
            await asyncio.Event().wait()

    return Incoming(sent(), pb.PredictRequest, ClientSlots(1, 1), peer)


async def read(call: Incoming, timeout_s: float = 60) -> object:
    async with asyncio.timeout(60):
        return await call.read(time.monotonic() + timeout_s, lambda _num_bytes: None)


def test_messages_are_parsed_in_turn() -> None:
    async def scenario() -> None:
        call = incoming(
            *(pb.PredictRequest(task=task).SerializeToString() for task in ("ocr", "captioning"))
        )
        assert await read(call) == pb.PredictRequest(task="ocr")
        assert await call.read_small() == pb.PredictRequest(task="captioning")
        with pytest.raises(NoMessage, match="the call has no message"):
            await read(call)

    run(scenario())


def test_a_message_that_does_not_come_ends_the_call_at_the_deadline() -> None:
    with pytest.raises(DeadlineExceeded, match="was not received before the deadline"):
        run(read(incoming(is_open=True), 0.05))


def test_bytes_of_no_message_are_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="malformed"):
        run(read(incoming(b"\xff")))


def test_a_message_of_a_call_without_a_place_is_small() -> None:
    largest = pb.PredictRequest(image=bytes(MAX_SMALL_BYTES - 4))
    assert run(incoming(largest.SerializeToString()).read_small()) == largest
    larger = pb.PredictRequest(image=bytes(MAX_SMALL_BYTES - 3)).SerializeToString()
    with pytest.raises(PayloadTooLarge, match="has 65537 bytes; at most 65536 are allowed"):
        run(incoming(larger).read_small())


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:192.0.2.1:50000", "192.0.2.1"), ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1")],
)
def test_the_address_of_the_caller_has_no_port(peer: str, address: str) -> None:
    assert incoming(peer=peer).address == address
