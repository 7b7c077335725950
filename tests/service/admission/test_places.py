"""Requests in flight are counted once, for all limits, until they leave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.admission.api_keys import Quota, QuotaLimits
from service.admission.places import Places, TrafficGaps
from service.errors import Overloaded
from tests.support.api_keys import FakeClock
from tests.support.fake_service import context, make_core
from tests.support.rest_client import OCR, client, error_of


async def test_drain_waits_for_the_last_request() -> None:
    places = Places(8, 100, 100)
    first = context()
    second = context()
    await places.take(first)
    await places.take(second)
    closing = [asyncio.create_task(places.close()) for _ in range(2)]
    for leaving in (first, second):
        await asyncio.sleep(0)
        assert not any(task.done() for task in closing)
        await places.leave(leaving)
    async with asyncio.timeout(10):
        await asyncio.gather(*closing, places.close())
    assert places.is_closed


async def test_place_is_taken_and_left_once() -> None:
    places = Places(1, 100, 100, TrafficGaps())
    request = context()
    for _ in range(2):
        await places.take(request)
        await places.take(request)
        places.hold(request, 60)
        assert places.num_bytes == 60
        await places.leave(request)
        await places.leave(request)
    assert places.num_bytes == 0


def test_client_has_a_limit_of_memory() -> None:
    places = Places(8, 100, 50)
    request = context()
    places.hold(request, 50)
    with pytest.raises(Overloaded, match="this client has 50 of 50 bytes of requests in memory"):
        places.hold(request, 1)


async def test_refused_request_holds_no_place() -> None:
    """Whether the service or its key refuses it."""

    places = Places(2, 100, 100)
    quota = Quota("one", QuotaLimits(max_concurrent=1))
    first, refused = (context(quota=quota) for _ in range(2))
    await places.take(first)
    with pytest.raises(Overloaded, match="limit of 1 concurrent requests"):
        await places.take(refused)
    assert not refused.place.is_taken
    await places.take(context())  # half of the limit, as of two clients
    with pytest.raises(Overloaded, match="requests in flight or queued"):
        await places.take(context())
    await places.leave(first)
    await places.take(refused)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/tasks", "/docs", "/v2/health/ready"])
def test_drain_closes_connections(path: str) -> None:
    core = make_core()
    asyncio.run(core.places.close())
    response = client(core).get(path)
    assert (response.status_code, response.headers["connection"]) == (503, "close")


def test_draining_service_is_not_ready() -> None:
    core = make_core()
    assert "connection" not in client(core).predict(OCR).headers
    asyncio.run(core.places.close())
    assert error_of(client(core).predict(OCR))["code"] == "not_ready"


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


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def background_work() -> AsyncIterator[tuple[TrafficGaps, Background, FakeClock]]:
    clock = FakeClock()
    gaps = TrafficGaps(now=clock)
    background = Background(gaps)
    starting = asyncio.create_task(background.run())
    await settle()
    try:
        yield gaps, background, clock
    finally:
        starting.cancel()
        for ended in background.running:
            ended.set()


async def test_background_requests_ramp_up() -> None:
    async with background_work() as (_, background, _):
        counts = []
        for _ in range(10):
            counts.append(len(background.running))
            await background.end_one()
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


async def test_online_request_cancels_others() -> None:
    async with background_work() as (gaps, background, clock):
        clock.now_s += SHORT_S
        await background.end_one()
        gaps.begin_online()
        await settle()
        assert (background.num_cancelled, background.running) == (2, [])


@pytest.mark.parametrize(("quiet_s", "num_running"), [(0.01, 0), (0.06, 1)])
async def test_gap_begins_after_a_moment(quiet_s: float, num_running: int) -> None:
    async with background_work() as (gaps, background, clock):
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


async def test_share_amid_traffic_is_small() -> None:
    async with background_work() as (gaps, background, clock):
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
