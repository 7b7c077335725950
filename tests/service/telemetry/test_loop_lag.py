"""A late event loop is measured, and the request that made it late is named.

The clock is moved: a busy machine makes a loop late, too.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY

from service.images.decoding import in_thread
from service.telemetry.loop_lag import LoopWatch
from tests.support.api_keys import FakeClock
from tests.support.core_calls import until

DUE_S = 0.05  # between two measurements
LATE_S = 0.4


def num_measured(longest_s: str | None = None) -> float:
    """Return the number of measurements, or of those up to a bound."""
    metric = "diptych_event_loop_lag_seconds"
    if longest_s is None:
        return REGISTRY.get_sample_value(f"{metric}_count") or 0
    return REGISTRY.get_sample_value(f"{metric}_bucket", {"le": longest_s}) or 0


def num_late() -> float:
    """Return the number of measurements above a tenth of a second."""
    return num_measured() - num_measured("0.1")


@dataclass(slots=True)
class Loop:
    """The watched loop, and the clock of its watch."""

    clock: FakeClock
    watch: LoopWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = LoopWatch(self.clock)

    async def block(self, late_s: float) -> None:
        """Hold the loop until it is noticed."""
        self.clock.now_s += DUE_S + late_s
        end_s = time.monotonic() + 60
        while not self.watch._suspect:
            assert time.monotonic() < end_s
            time.sleep(0.001)


async def measured(num: int = 1) -> None:
    """Wait for measurements."""
    before = num_measured()
    await until(lambda: num_measured() >= before + num)


def log_of(
    name: str,
    request: Callable[[Loop], Coroutine[None, None, None]],
    caplog: pytest.LogCaptureFixture,
) -> list[str]:
    async def scenario() -> None:
        loop = Loop(FakeClock())
        loop.watch.start()
        try:
            await asyncio.create_task(request(loop), name=f"request {name}")
            await measured()
        finally:
            loop.watch.stop()

    asyncio.run(scenario())
    return [record.message for record in caplog.records if "event loop" in record.message]


def test_blocking_request_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def block(loop: Loop) -> None:
        await loop.block(LATE_S)

    before = num_late()
    (line,) = log_of("slow-1", block, caplog)
    assert re.search(
        r"late by 0\.40 s: request slow-1 at tests/service/telemetry/test_loop_lag.py:\d+ block",
        line,
    )
    assert num_late() == before + 1


def test_request_with_the_lock_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody notices what holds the loop meanwhile."""

    async def hold(loop: Loop) -> None:
        ended = threading.Event()
        working = asyncio.create_task(in_thread(ended.wait), name="request slow-2")
        await asyncio.sleep(0)  # it starts
        loop.clock.now_s += DUE_S + LATE_S
        await measured()
        ended.set()
        await working

    assert any("slow-2" in line for line in log_of("slow-2", hold, caplog))


def test_late_loop_is_logged_each_second(caplog: pytest.LogCaptureFixture) -> None:
    async def block_twice(loop: Loop) -> None:
        for _ in range(2):
            await loop.block(LATE_S)
            await measured()

    before = num_late()
    assert len(log_of("slow-3", block_twice, caplog)) == 1
    assert num_late() == before + 2


def test_a_loop_in_time_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def wait(_loop: Loop) -> None:
        await measured(3)

    assert log_of("quick", wait, caplog) == []


def test_only_the_blocking_request_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def block_beside_others(loop: Loop) -> None:
        # late, but within the promise: noted and not logged
        await asyncio.create_task(loop.block(0.09), name="request earlier")
        await measured()
        waiting = asyncio.create_task(asyncio.sleep(0.1), name="request waiting")
        await asyncio.create_task(loop.block(LATE_S), name="request later")
        await waiting

    (line,) = log_of("slow-4", block_beside_others, caplog)
    assert "request later at" in line


def test_busy_machine_is_logged_rarely(caplog: pytest.LogCaptureFixture) -> None:
    async def late_without_a_request(loop: Loop) -> None:
        for late_s in (LATE_S, 2.0):
            now_s = loop.clock.now_s + DUE_S + late_s
            asyncio.get_running_loop().call_soon(setattr, loop.clock, "now_s", now_s)
            await asyncio.sleep(3 * DUE_S)  # no task runs until it is measured

    lines = log_of("none", late_without_a_request, caplog)
    assert [line.partition(": ")[2] for line in lines] == [
        "no request had work; the machine may be busy"
    ]
