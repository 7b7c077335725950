"""Draining before shutdown: SIGTERM reaches uvicorn only after all calls in flight are answered.

uvicorn closes its socket at once, so that a proxy would consider the runner dead and abort its
calls. While it drains, the runner still answers that it is not ready, and gets no new calls.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send


def drain_before_stop(
    drain: Callable[[], Awaitable[object]], signum: signal.Signals = signal.SIGTERM
) -> None:
    """On the signal, await `drain`, then run uvicorn's handler; call it in the loop's thread."""
    stop_uvicorn = signal.getsignal(signum)
    assert callable(stop_uvicorn)
    draining = set[asyncio.Task[None]]()  # the event loop holds only weak references

    async def drain_then_stop() -> None:
        await drain()
        stop_uvicorn(signum, None)

    def begin() -> None:
        if not draining:
            draining.add(asyncio.ensure_future(drain_then_stop()))

    asyncio.get_running_loop().add_signal_handler(signum, begin)


class CallsInFlight:
    """Counts the calls in flight; `is_draining` is True once `drain` has been called."""

    def __init__(self) -> None:
        self.is_draining = False
        self._num_calls = 0
        self._ended = asyncio.Event()

    async def drain(self) -> None:
        """Wait until no call is in flight."""
        self.is_draining = True
        while self._num_calls:
            self._ended.clear()
            await self._ended.wait()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return `app` with its POST requests counted, up to the last byte of their responses."""

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
