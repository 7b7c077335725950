"""Background requests run between online ones, give way to them, and are never kept out for
ever.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.admission.places import TrafficGaps
from tests.support.api_keys import FakeClock
from tests.support.core_calls import run

SHORT_S = 1.0


class Background:
    """Starts background requests one after the other, each of which ends when it is told to."""

    def __init__(self, gaps: TrafficGaps) -> None:
        self.running: list[asyncio.Event] = []
        self.num_cancelled = 0
        self._gaps = gaps

    async def run(self) -> None:
        while True:
            await self._gaps.wait()
            self._gaps.start(self._one())

    async def end_one(self) -> None:
        self.running[0].set()
        await settle()

    async def _one(self) -> None:
        ended = asyncio.Event()
        self.running.append(ended)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.running.remove(ended)


Scenario = Callable[[TrafficGaps, Background, FakeClock], Coroutine[Any, Any, None]]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(scenario: Scenario) -> None:
    async def scene() -> None:
        clock = FakeClock()
        gaps = TrafficGaps(now=clock)
        background = Background(gaps)
        starting = asyncio.create_task(background.run())
        await settle()
        try:
            await scenario(gaps, background, clock)
        finally:
            starting.cancel()
            for ended in background.running:
                ended.set()

    run(scene())


def test_background_requests_ramp_up() -> None:
    async def scenario(_gaps: TrafficGaps, background: Background, _clock: FakeClock) -> None:
        counts = []
        for _ in range(10):
            counts.append(len(background.running))
            await background.end_one()
        assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]

    play(scenario)


def test_online_request_cancels_others() -> None:
    async def scenario(gaps: TrafficGaps, background: Background, clock: FakeClock) -> None:
        clock.now_s += SHORT_S
        await background.end_one()
        gaps.begin_online()
        await settle()
        assert background.num_cancelled == 2
        assert background.running == []

    play(scenario)


@pytest.mark.parametrize(("quiet_s", "num_running"), [(0.01, 0), (0.06, 1)])
def test_gap_begins_after_a_moment(quiet_s: float, num_running: int) -> None:
    async def scenario(gaps: TrafficGaps, background: Background, clock: FakeClock) -> None:
        clock.now_s += SHORT_S
        await background.end_one()
        gaps.begin_online()
        gaps.begin_online()
        await settle()
        gaps.end_online()
        clock.now_s += SHORT_S
        gaps.end_online()
        clock.now_s += quiet_s
        gaps._changed.set()  # its timer does this on the real clock
        await settle()
        assert len(background.running) == num_running

    play(scenario)


def test_share_amid_traffic_is_small() -> None:
    async def scenario(gaps: TrafficGaps, background: Background, clock: FakeClock) -> None:
        clock.now_s += 2
        await background.end_one()  # it took 2 s
        gaps.begin_online()
        await settle()
        assert background.running == []
        for passed_s, num_running in [(99, 0), (2, 1)]:
            clock.now_s += passed_s
            gaps._changed.set()
            await settle()
            assert len(background.running) == num_running
        gaps.begin_online()
        await settle()
        assert (len(background.running), background.num_cancelled) == (1, 2)  # it is not cancelled

    play(scenario)
