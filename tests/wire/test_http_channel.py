"""The channel over real connections: to a Unix socket with pixels in shared memory, and over TCP in
the body.
"""

import asyncio
import os
import socket as socket_module
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from tests.support.cancellation import cancel_at_each_await
from tests.support.fake_service import until
from wire.http_channel import HttpChannel
from wire.pixels import MESSAGE_BYTES_HEADER, Pixels, read_call
from wire.runner_channel import (
    CallBroken,
    CallTimedOut,
    ChannelError,
    FeaturesMissing,
    RunnerCall,
    RunnerUnreachable,
)
from wire.runner_messages import (
    AdapterStates,
    FoundFeatures,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WriteCall,
    WritingEvent,
    Written,
)

SHAPE_HWC = (4, 5, 3)
PIXELS = np.arange(60, dtype=np.uint8).reshape(SHAPE_HWC)
WRITTEN = Written(
    text="a cat",
    token_ends=[1, 5],
    logprobs=[-0.5, -0.25],
    finish_reason="stop",
    num_prompt_tokens=3,
    num_generated_tokens=3,
    queue_s=0.1,
    prefill_s=0.2,
    decode_s=0.3,
)
OUTCOMES = Outcomes(features=FoundFeatures(outcome="miss", encode_s=0.5), outcomes=[WRITTEN])
EVENTS: Sequence[WritingEvent] = (
    FoundFeatures(outcome="hit"),
    TextPiece(index=0, text="a cat\n" * 20_000),
    SequenceEnd(index=0, outcome=WRITTEN),
)
SPECS = [SequenceSpec(segments=[("what?", True)], timeout_s=60)]


class Runner:
    """A runner's HTTP API with canned answers."""

    def __init__(self) -> None:
        self.received: list[tuple[WriteCall, Pixels | None]] = []
        self.connections: set[object] = set()
        self.num_in_flight = 0
        self.status = 200
        self.is_dying = False  # it closes the connection in the middle of an answer
        self.released: asyncio.Event | None = None  # answers only when this is set

    async def write(self, request: web.Request) -> web.Response:
        with suppress(ValueError):  # a caller that has left has closed its memory
            await self._receive(request)
        self._die(request)
        if self.released is not None:
            await self.released.wait()
        # a long body: an unread one costs the connection
        body = OUTCOMES.model_dump_json().ljust(1_000_000)
        return web.Response(status=self.status, body=body)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        with suppress(ValueError):
            await self._receive(request)
        response = web.StreamResponse()
        with suppress(ConnectionError):  # the caller has left
            await response.prepare(request)
            for event in EVENTS:
                await response.write(event.model_dump_json().encode() + b"\n")
                self._die(request)
        return response

    async def state(self, request: web.Request) -> web.Response:
        states = AdapterStates(loaded=frozenset({"a"}), refused={})
        body = states.model_dump_json() if request.path == "/adapters" else ""
        return web.Response(status=self.status, body=body)

    def _die(self, request: web.Request) -> None:
        if self.is_dying:
            assert request.transport is not None
            request.transport.close()

    async def _receive(self, request: web.Request) -> None:
        self.connections.add(request.transport)
        self.num_in_flight += 1
        try:
            body = await request.read()
            call, pixels = read_call(body, request.headers.get(MESSAGE_BYTES_HEADER), SHAPE_HWC)
            # a copy: the memory is closed
            self.received.append((call, None if pixels is None else pixels.copy()))
        finally:
            self.num_in_flight -= 1


@asynccontextmanager
async def serving(
    socket: Path | None, timeout_s: float = 10
) -> AsyncIterator[tuple[HttpChannel, Runner]]:
    """Yield a channel and its runner, over a socket or over TCP."""
    runner = Runner()
    app = web.Application()
    app.add_routes([web.post("/write", runner.write), web.post("/stream", runner.stream)])
    app.add_routes([web.get(path, runner.state) for path in ("/readyz", "/adapters")])
    served = web.AppRunner(app, access_log=None)
    await served.setup()
    site: web.BaseSite = web.TCPSite(served, "127.0.0.1", 0)
    if socket is not None:
        site = web.UnixSite(served, str(socket))
    await site.start()
    url = f"tcp://127.0.0.1:{served.addresses[0][1]}" if socket is None else f"file://{socket}"
    channel = HttpChannel(url, "build", timeout_s)
    try:
        yield channel, runner
    finally:
        await channel.close()
        await served.cleanup()


@pytest.fixture(params=["socket", "TCP"])
def socket(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "runner.sock" if request.param == "socket" else None


async def test_calls(socket: Path | None) -> None:
    async with serving(socket) as (channel, runner):
        assert await channel.write(RunnerCall("key", SPECS, PIXELS)) == OUTCOMES
        events = [event async for event in channel.stream(RunnerCall("key", SPECS))]
    assert events == list(EVENTS)
    (_, pixels), without = runner.received
    assert pixels is not None
    assert np.array_equal(pixels, PIXELS)
    assert without == (WriteCall(sequences=SPECS), None)


@pytest.mark.parametrize(
    ("status", "pixels", "error"),
    [
        (404, None, FeaturesMissing),
        (404, PIXELS, ChannelError),
        (500, PIXELS, ChannelError),
        (502, PIXELS, CallBroken),
        (503, PIXELS, RunnerUnreachable),
        (504, PIXELS, CallTimedOut),
    ],
)
async def test_error_statuses(
    status: int, pixels: Pixels | None, error: type[ChannelError]
) -> None:
    """Missing features cost no connection."""
    async with serving(None) as (channel, runner):
        runner.status = status
        for _ in range(2):
            with pytest.raises(ChannelError) as failed:
                await channel.write(RunnerCall("key", SPECS, pixels))
            assert type(failed.value) is error
        assert len(runner.connections) == 1 or pixels is not None


async def test_broken_and_refused_connections(socket: Path | None) -> None:
    async with serving(socket) as (channel, runner):
        runner.is_dying = True
        with pytest.raises(CallBroken, match="ServerDisconnectedError"):
            await channel.write(RunnerCall("key", SPECS))
        events = channel.stream(RunnerCall("key", SPECS))
        assert await anext(events) == EVENTS[0]
        with pytest.raises(CallBroken, match="ClientPayloadError"):
            await anext(events)
    gone = HttpChannel(channel.url, "build", 10)
    with pytest.raises(RunnerUnreachable, match="ClientConnectorError") as refused:
        await gone.write(RunnerCall("key", SPECS))
    assert type(refused.value) is RunnerUnreachable
    assert not await gone.is_ready()
    await gone.close()


async def test_call_that_takes_too_long(socket: Path | None) -> None:
    async with serving(socket, timeout_s=0.2) as (channel, runner):
        runner.released = asyncio.Event()
        with pytest.raises(CallTimedOut):
            await channel.write(RunnerCall("key", SPECS))
        runner.released.set()


async def test_host_that_does_not_answer() -> None:
    """A connection has less time than a call: the one below would take a minute."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket_module.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(2):  # fill the backlog: the kernel drops what comes next
            client = stack.enter_context(socket_module.socket())
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(address)
        channel = HttpChannel(f"http://127.0.0.1:{address[1]}", "build", timeout_s=60)
        async with asyncio.timeout(20):
            with pytest.raises(RunnerUnreachable) as failed:
                await channel.write(RunnerCall("key", SPECS))
        assert type(failed.value) is RunnerUnreachable
        await channel.close()


async def test_state_of_a_runner(socket: Path | None) -> None:
    async with serving(socket) as (channel, runner):
        assert await channel.is_ready()
        states = await channel.adapters()
        assert states is not None
        assert states.loaded == {"a"}
        runner.status = 503
        assert not await channel.is_ready()
        assert await channel.adapters() is None


def num_memories() -> int:
    """Return the number of open memories with pixels, the runner's maps apart."""
    num_open = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing itself opened it
            num_open += os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:diptych-")
    return num_open


@pytest.mark.parametrize("is_stream", [False, True], ids=["write", "stream"])
async def test_cancelled_call_leaves_nothing(socket: Path | None, is_stream: bool) -> None:
    async with serving(socket) as (channel, runner):

        async def call() -> None:
            if not is_stream:
                await channel.write(RunnerCall("key", SPECS, PIXELS))
                return
            async with aclosing(channel.stream(RunnerCall("key", SPECS, PIXELS))) as events:
                async for _ in events:
                    pass

        def is_idle() -> bool:
            return runner.num_in_flight == 0 and len(asyncio.all_tasks()) <= num_tasks + 1

        async def nothing_is_left() -> None:
            await until(is_idle)
            assert num_memories() == 0
            await call()

        await call()
        num_tasks = len(asyncio.all_tasks())
        assert await cancel_at_each_await(call, nothing_is_left) >= 2
