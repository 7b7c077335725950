"""The process of outbound calls: it answers as direct calls do, and is replaced."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from service.outbound.messages import (
    Call,
    CallError,
    Event,
    FileCall,
    HttpCall,
    OutboundCalls,
    ResponseHead,
    frame,
    read_frame,
)
from service.outbound.process import OutboundProcess
from service.outbound.program import DirectCalls
from service.outbound.urls import AllowedHost
from tests.support.export_cli import ROOT
from tests.support.http_servers import Handler, serving
from tests.support.image_hosts import ImageHost, listening, response
from tests.support.waiting import wait_until
from wire.runner_messages import Written

FILE = bytes(range(256)) * 1000
SECRET = "sk-of-the-engine"


@asynccontextmanager
async def process_calls() -> AsyncIterator[OutboundProcess]:
    process = OutboundProcess(1_000_000_000)
    running = asyncio.create_task(process.keep_running())
    try:
        yield process
    finally:
        running.cancel()
        await asyncio.wait([running])


@asynccontextmanager
async def direct_calls() -> AsyncIterator[DirectCalls]:
    calls = DirectCalls()
    yield calls
    await calls.close()


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        if "service.outbound.program" in child.cmdline():
            found.append(child)
    return found


def file_call(host: ImageHost, path: str = "/a.png", max_bytes: int = 1_000_000) -> FileCall:
    return FileCall(
        url=f"http://127.0.0.1:{host.port}{path}",
        allowed=[AllowedHost("*", host.port)],
        may_be_private=True,
        max_bytes=max_bytes,
        client="",
        headers={},
        timeout_s=60,
    )


def completion_call(host: ImageHost) -> HttpCall:
    return HttpCall(
        kind="completion",
        url=f"http://127.0.0.1:{host.port}/chat",
        headers={"Authorization": f"Bearer {SECRET}"},
        timeout_s=60,
    )


async def events_of(calls: OutboundCalls, call: Call, body: bytes = b"") -> list[Event]:
    async with aclosing(calls.run(call, body)) as events:
        return [event async for event in events]


def bytes_of(events: Sequence[Event]) -> bytes:
    return b"".join(event for event in events if isinstance(event, bytes))


def chunk(text: str, **more: object) -> bytes:
    return json.dumps({"choices": [{"delta": {"content": text}, **more}]}).encode() + b"\n"


@pytest.mark.parametrize("kind", [direct_calls, process_calls])
async def test_events_are_those_of_a_direct_call(kind: type) -> None:
    stream = chunk("two ") + chunk("\ud800 cats", finish_reason="stop")
    answers = {"/a.png": response(FILE), "/chat": response(stream)}
    async with listening(ImageHost(answers)) as host, kind() as calls:
        pieces = await events_of(calls, file_call(host))
        with pytest.raises(CallError, match="status 404") as missing:
            await events_of(calls, file_call(host, "/b.png"))
        with pytest.raises(CallError, match="larger than the maximum of 999 bytes") as large:
            await events_of(calls, file_call(host, max_bytes=999))
        head, *texts, written = await events_of(calls, completion_call(host), b"{}")
    assert bytes_of(pieces) == FILE
    assert (missing.value.reason, large.value.reason) == ("invalid_request", "payload_too_large")
    assert isinstance(head, ResponseHead)
    assert isinstance(written, Written)
    assert bytes_of(texts) == b"two ? cats"
    assert written.text == "two ? cats"
    assert f"Authorization: Bearer {SECRET}" in host.requests[-1]


async def test_large_body_is_sent_whole() -> None:
    received = []

    class Engine(Handler):
        def do_POST(self) -> None:
            received.append(self.body())
            self.send(200, b"{}")

    body = bytes(range(256)) * 120_000
    with serving(Engine) as url:
        call = HttpCall(kind="document", url=url, headers={}, timeout_s=60)
        async with process_calls() as calls:
            head, document = await events_of(calls, call, body)
    assert isinstance(head, ResponseHead)
    assert (head.status, document) == (200, b"{}")
    assert received == [body]


async def test_calls_may_be_cancelled_at_any_time(capfd: pytest.CaptureFixture[str]) -> None:
    body = bytes(3_000_000)
    async with listening(ImageHost({"/a.png": response(FILE)})) as host, process_calls() as calls:
        for number in range(40):
            call = asyncio.create_task(events_of(calls, completion_call(host), body))
            await asyncio.sleep(number / 10_000)
            call.cancel()
            await asyncio.wait([call])
        assert bytes_of(await events_of(calls, file_call(host))) == FILE
    assert capfd.readouterr().err == ""


async def test_text_comes_as_it_is_written_and_cancellation_closes_the_connection() -> None:
    host = ImageHost({"/chat": [b"HTTP/1.1 200 OK\r\n\r\n" + chunk("a ")]})  # then nothing comes
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await host.serve(reader, writer)
        closed.set()

    async with process_calls() as calls:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host.port = server.sockets[0].getsockname()[1]
        async with aclosing(calls.run(completion_call(host), b"{}")) as events:
            assert isinstance(await anext(events), ResponseHead)
            assert await anext(events) == b"a "
            assert not closed.is_set()
        await asyncio.wait_for(closed.wait(), 60)
        server.close()


async def test_killed_process_fails_its_calls_and_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: dict[str, bytes | list[bytes]] = {"/a.png": response(FILE), "/slow": [b""]}
    with caplog.at_level(logging.ERROR):
        async with listening(ImageHost(answers)) as host, process_calls() as calls:
            slow = asyncio.create_task(events_of(calls, file_call(host, "/slow")))
            while not host.requests:
                await asyncio.sleep(0.01)
            (first,) = children()
            first.send_signal(signal.SIGKILL)
            with pytest.raises(CallError) as lost:
                await slow
            pieces = await events_of(calls, file_call(host))
            (second,) = children()
            assert second.pid != first.pid
    assert not children()
    assert lost.value.reason == "lost"
    assert bytes_of(pieces) == FILE
    assert "service.outbound.program ended with status -9 and is restarted" in caplog.text


async def test_process_has_no_secrets_and_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", SECRET)
    async with listening(ImageHost({"/a.png": response(FILE)})) as host, process_calls() as calls:
        await events_of(calls, file_call(host))
        (child,) = children()
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        limits = Path(f"/proc/{child.pid}/limits").read_text(encoding="utf-8").splitlines()
    assert SECRET.encode() not in environment
    (space,) = [line.split() for line in limits if line.startswith("Max address space")]
    assert int(space[3]) == 4_000_000_000


def test_process_ends_with_the_gateway() -> None:
    script = """
import asyncio, psutil
from service.outbound.process import OutboundProcess

async def main():
    running = asyncio.create_task(OutboundProcess(1).keep_running())
    while not psutil.Process().children():
        await asyncio.sleep(0.01)
    print(psutil.Process().children()[0].pid, flush=True)
    await running

asyncio.run(main())
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        assert psutil.pid_exists(pid)
        gateway.kill()
    wait_until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("sent", [b"", frame(b"B", b"x" * 11), frame(b"B", b"x" * 10)[:-1]])
async def test_frame_that_is_long_or_cut_is_an_error(sent: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(frame(b"B", b"x" * 10) + sent)
    reader.feed_eof()
    assert await read_frame(reader, 10) == (b"B", b"x" * 10)
    with pytest.raises(ValueError, match=r"11 bytes; at most 10|ended before the call"):
        await read_frame(reader, 10)
