"""Hosts that send without end: each response is bounded, whatever the host sends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field

import pytest

from service.outbound.messages import Call, CallError, Event, FileCall, HttpCall
from service.outbound.program import DirectCalls
from service.outbound.urls import AllowedHost
from tests.support.image_hosts import ImageHost, listening, response
from wire.runner_messages import Written

MAX_FILE_BYTES = 100_000
# sent before the client can have closed the connection: what sockets and asyncio have in buffers
MAX_UNREAD_BYTES = 12_000_000
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = OK + b"Connection: close\r\n\r\n"


@dataclass(slots=True)
class EndlessHost:
    """Answers with `head`, and then with `unit` until the client has gone."""

    head: bytes
    unit: bytes
    num_bytes: int = 0
    num_connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.head)
            block = self.unit * (1 + 10_000 // len(self.unit))
            while not writer.is_closing():
                writer.write(block)
                await writer.drain()
                self.num_bytes += len(block)
        self.gone.set()


@asynccontextmanager
async def endless(head: bytes, unit: bytes) -> AsyncIterator[tuple[EndlessHost, int]]:
    host = EndlessHost(head, unit)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    try:
        yield host, server.sockets[0].getsockname()[1]
    finally:
        server.close()


def file_call(port: int) -> FileCall:
    return FileCall(
        url=f"http://127.0.0.1:{port}/a.png",
        allowed=[AllowedHost("*", port)],
        may_be_private=True,
        max_bytes=MAX_FILE_BYTES,
        client="",
        headers={},
        timeout_s=60,
    )


def completion_call(port: int) -> HttpCall:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return HttpCall(kind="completion", url=url, headers={}, timeout_s=60)


async def events_of(call: Call) -> list[Event]:
    calls = DirectCalls()
    try:
        async with aclosing(calls.run(call, b"{}")) as events:
            return [event async for event in events]
    finally:
        await calls.close()


async def check_bounded(host: EndlessHost, call: Call, reason: str, problem: str) -> None:
    with pytest.raises(CallError, match=problem) as raised:
        await events_of(call)
    assert raised.value.reason == reason
    await asyncio.wait_for(host.gone.wait(), 60)
    assert host.num_bytes < MAX_UNREAD_BYTES
    assert host.num_connections == 1


@pytest.mark.parametrize(
    ("head", "unit", "reason", "problem"),
    [
        (b"", CONTINUE, "invalid_request", "does not answer"),
        (b"", b"\r\n", "invalid_request", "does not answer"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", "invalid_request", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"a", "invalid_request", "does not answer"),
        (CHUNKED, b"1\r\nx\r\n", "invalid_request", "does not answer"),
        (CHUNKED + b"1;", b"a", "invalid_request", "does not answer"),
        (UNTIL_CLOSED, b"x", "payload_too_large", "larger than the maximum of 100000 bytes"),
    ],
)
async def test_file_is_bounded(head: bytes, unit: bytes, reason: str, problem: str) -> None:
    async with endless(head, unit) as (host, port):
        await check_bounded(host, file_call(port), reason, problem)


LETTER = json.dumps({"choices": [{"delta": {"content": "x"}}]}).encode()
TOKENS = [{"token": "x", "logprob": -1}] * 100
LOGPROBS = {"choices": [{"delta": {}, "logprobs": {"content": TOKENS}}]}


@pytest.mark.parametrize(
    ("head", "unit", "problem"),
    [
        (b"", CONTINUE, "more than 1 interim response"),
        (b"", b"\r\n", "more than 5000000 bytes"),
        (CHUNKED, b"1\r\nx\r\n", "more than 21000 chunks"),
        (CHUNKED, b"1\r\n\n\r\n", "more than 21000 chunks"),
        (CHUNKED + b"1;", b"a", "more than 5000000 bytes"),
        (UNTIL_CLOSED, b"\n", "more than 50000 lines"),
        (UNTIL_CLOSED, b"{}\n", "more than (50000 lines|20000 events)"),
        (UNTIL_CLOSED, LETTER + b"\n", "more than 20000 events"),
        (UNTIL_CLOSED, json.dumps(LOGPROBS).encode() + b"\n", "more than (20000 tokens|4000000)"),
        (UNTIL_CLOSED, b"data: x", "more than 4000000 bytes"),
        (UNTIL_CLOSED, b"data: [DONE] \n", "more than 50000 lines"),
    ],
)
async def test_completion_is_bounded(head: bytes, unit: bytes, problem: str) -> None:
    async with endless(head, unit) as (host, port):
        await check_bounded(host, completion_call(port), "broken", problem)


async def test_refusal_is_bounded() -> None:
    async with endless(b"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n", b"no \n") as (host, port):
        (head,) = await events_of(completion_call(port))
        await asyncio.wait_for(host.gone.wait(), 60)
    assert not isinstance(head, bytes | Written)
    assert (head.status, head.message[:5], len(head.message)) == (400, "no no", 14_999)


async def test_one_interim_response_is_skipped() -> None:
    chunk = {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}
    body = json.dumps(chunk).encode() + b"\n"
    answers = {"/v1/chat/completions": CONTINUE + response(body)}
    async with listening(ImageHost(answers)) as host:
        _, text, written = await events_of(completion_call(host.port))
    assert isinstance(written, Written)
    assert (text, written.text) == (b"x", "x")
