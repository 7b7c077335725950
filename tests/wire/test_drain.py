"""A process that drains before it stops."""

import asyncio
import os
import signal

from tests.support.fake_service import until
from wire.drain import drain_before_stop


def test_signal_stops_the_server_after_the_drain() -> None:
    events: list[str] = []

    async def scenario() -> None:
        drained = asyncio.Event()

        async def drain() -> None:
            events.append("drain")
            await drained.wait()

        drain_before_stop(drain, signal.SIGUSR1)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: bool(events))
            await asyncio.sleep(0.01)  # the handler of the second signal
        assert events == ["drain"]
        drained.set()
        await until(lambda: len(events) > 1)

    before = signal.signal(signal.SIGUSR1, lambda *_: events.append("stop"))
    try:
        asyncio.run(scenario())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert events == ["drain", "stop"]
