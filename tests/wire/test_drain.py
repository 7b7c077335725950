"""A process that drains before it stops."""

import asyncio
import os
import signal

from wire.drain import drain_before_stop


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
            for _ in range(10):  # the handler of the second signal
                await asyncio.sleep(0)
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
