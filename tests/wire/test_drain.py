"""A runner that drains: it ends after the calls in flight, to the last byte of their responses."""

import asyncio
import os
import signal

import pytest
from starlette.types import Message, Receive, Scope, Send

from wire.drain import CallsInFlight, drain_before_stop


class Calls:
    """Calls to an app that answers each when its event is set."""

    def __init__(self) -> None:
        self.in_flight = CallsInFlight()
        self._app = self.in_flight.middleware(self._answer)

    async def begin(
        self, method: str = "POST", kind: str = "http"
    ) -> "tuple[asyncio.Event, asyncio.Task[None]]":
        event = asyncio.Event()
        scope = {"type": kind, "method": method, "event": event}
        request = asyncio.ensure_future(self._app(scope, None, self._send))  # type: ignore[arg-type]
        await turns()
        return event, request

    async def _answer(self, scope: Scope, _: Receive, send: Send) -> None:
        await scope["event"].wait()
        await send({"type": "http.response.body"})

    async def _send(self, _: Message) -> None:
        await asyncio.sleep(0)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_draining_ends_with_the_last_call() -> None:
    calls = Calls()
    events = [(await calls.begin())[0] for _ in range(2)]
    assert not calls.in_flight.is_draining
    draining = asyncio.ensure_future(calls.in_flight.drain())
    await turns()
    assert calls.in_flight.is_draining
    for event in reversed(events):
        assert not draining.done()
        event.set()
        await turns()
    assert draining.done()


@pytest.mark.parametrize(
    ("method", "kind"), [("GET", "http"), ("POST", "lifespan"), ("POST", "http")]
)
async def test_draining_waits_for_no_other_request(method: str, kind: str) -> None:
    """A call that is cancelled is no longer in flight."""
    calls = Calls()
    _, request = await calls.begin(method, kind)
    if (method, kind) == ("POST", "http"):
        request.cancel()
    async with asyncio.timeout(5):
        await calls.in_flight.drain()
    request.cancel()


def test_signal_stops_the_server_after_the_drain() -> None:
    stopped: list[int] = []

    async def scenario() -> None:
        num_drains = 0
        drained = asyncio.Event()

        async def drain() -> None:
            nonlocal num_drains
            num_drains += 1
            await drained.wait()

        drain_before_stop(drain, signal.SIGUSR1)
        async with asyncio.timeout(5):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
                while not num_drains:
                    await asyncio.sleep(0)
            await turns()  # the handler of the second signal
            assert stopped == []
            drained.set()
            while not stopped:
                await asyncio.sleep(0)
        assert num_drains == 1

    before = signal.signal(signal.SIGUSR1, lambda signum, _: stopped.append(signum))
    try:
        asyncio.run(scenario())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stopped == [signal.SIGUSR1]
