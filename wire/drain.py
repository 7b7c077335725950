"""Draining before shutdown: SIGTERM reaches uvicorn only after all calls in flight are answered.

uvicorn closes its socket at once, so that a proxy would consider the runner dead and abort its
calls. While it drains, the runner still answers that it is not ready, and gets no new calls.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable


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
