"""Shutdown without loss: a signal reaches uvicorn only when every call in flight is answered.

uvicorn closes its socket at once. A proxy would take the runner for dead and end its calls; a runner that still answers
that it is not ready gets no new ones.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send


def drain_before_stop(drain: Callable[[], Awaitable[object]], signum: signal.Signals = signal.SIGTERM) -> None:
    """Await `drain` when the signal comes, then let uvicorn handle it. Called in the event loop's thread."""
    stop_uvicorn = signal.getsignal(signum)
    assert callable(stop_uvicorn)
    draining = set[asyncio.Task[None]]()  # the event loop itself refers to tasks weakly

    async def drain_then_stop() -> None:
        await drain()
        stop_uvicorn(signum, None)

    def begin() -> None:
        if not draining:
            draining.add(asyncio.ensure_future(drain_then_stop()))

    asyncio.get_running_loop().add_signal_handler(signum, begin)


class CallsInFlight:
    """The number of calls in flight, and whether the runner is draining."""

    def __init__(self) -> None:
        self.is_draining = False
        self._num_calls = 0
        self._ended = asyncio.Event()

    async def drain(self) -> None:
        """Return when no call is in flight."""
        self.is_draining = True
        while self._num_calls:
            self._ended.clear()
            await self._ended.wait()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Count the POST requests of `app`, to the last byte of their answers."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                return await app(scope, receive, send)
            self._num_calls += 1
            try:
                return await app(scope, receive, send)
            finally:
                self._num_calls -= 1
                self._ended.set()

        return counted
