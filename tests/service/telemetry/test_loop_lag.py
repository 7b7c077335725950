"""A late event loop is measured, and the request that made it late is named."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine

import pytest
from prometheus_client import REGISTRY

from service.images.decoding import in_thread
from service.telemetry.loop_lag import LoopWatch

Request = Callable[[], Coroutine[None, None, None]]

BLOCKED_S = 0.4


def num_late() -> float:
    """Return the number of measurements above a tenth of a second."""
    metric = "diptych_event_loop_lag_seconds"
    found = (
        REGISTRY.get_sample_value(f"{metric}_count"),
        REGISTRY.get_sample_value(f"{metric}_bucket", {"le": "0.1"}),
    )
    return (found[0] or 0) - (found[1] or 0)


def log_of(
    name: str, request: Callable[[], Coroutine[None, None, None]], caplog: pytest.LogCaptureFixture
) -> list[str]:
    async def scenario() -> None:
        watch = LoopWatch()
        watch.start()
        try:
            await asyncio.create_task(request(), name=f"request {name}")
            await asyncio.sleep(0.1)
        finally:
            watch.stop()

    asyncio.run(scenario())
    return [record.message for record in caplog.records if "event loop" in record.message]


def test_the_request_that_blocks_the_loop_is_named_with_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def block() -> None:
        time.sleep(BLOCKED_S)

    before = num_late()
    (line,) = log_of("slow-1", block, caplog)
    assert re.search(
        r"late by 0\.\d+ s: request slow-1 at tests/service/telemetry/test_loop_lag.py:\d+ block",
        line,
    )
    assert num_late() == before + 1


def test_a_request_whose_thread_keeps_the_interpreters_lock_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hold() -> None:
        num_letters = 20
        taken_s = 0.0
        # a regular expression releases no lock, and each letter doubles its time
        while taken_s < BLOCKED_S:
            start_s = time.monotonic()
            await in_thread(re.match, r"(a+)+$", "a" * num_letters + "b")
            taken_s, num_letters = time.monotonic() - start_s, num_letters + 1

    assert any("slow-2" in line for line in log_of("slow-2", hold, caplog))


def test_a_loop_that_stays_late_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    async def block_twice() -> None:
        for _ in range(2):
            time.sleep(BLOCKED_S / 2)
            await asyncio.sleep(0.1)  # the loop is measured meanwhile

    before = num_late()
    assert len(log_of("slow-3", block_twice, caplog)) == 1
    assert num_late() >= before + 2


def test_a_loop_in_time_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def wait() -> None:
        await asyncio.sleep(0.2)

    assert log_of("quick", wait, caplog) == []


def test_only_the_request_that_blocks_now_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def block(seconds: float) -> None:
        time.sleep(seconds)

    async def block_beside_others() -> None:
        # late, but within the promise: noted and not logged
        await asyncio.create_task(block(0.09), name="request earlier")
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(asyncio.sleep(0.1), name="request waiting")
        await asyncio.create_task(block(BLOCKED_S), name="request later")
        await waiting

    (line,) = log_of("slow-4", block_beside_others, caplog)
    assert "request later at" in line


def test_a_busy_machine_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def late_without_a_request() -> None:
        for _ in range(2):
            asyncio.get_running_loop().call_soon(time.sleep, BLOCKED_S)
            await asyncio.sleep(1.1)

    lines = log_of("none", late_without_a_request, caplog)
    assert [line.partition(": ")[2] for line in lines] == [
        "no request had work; the machine may be busy"
    ]
