"""Shares, slots and the queue of a runner: a client that leaves at any moment keeps none."""

import asyncio
import math
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress

import pytest

from service.admission.fair_queue import (
    ClientSlots,
    FairQueue,
    FairShare,
    FairSlots,
    ThroughputEstimate,
)
from service.errors import DeadlineExceeded, Overloaded
from tests.support.api_keys import FakeClock
from tests.support.cancellation import cancel_at_each_await
from tests.support.fake_service import until
from wire.telemetry.runner_metrics import QUEUE_DEPTH


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_heavy_client_locks_out_no_other() -> None:
    shares = FairShare(10)
    shares.take("heavy", 7, "tokens")
    assert (shares.excess("heavy", 3), shares.excess("heavy", 4)) == (0, 1)
    shares.take("heavy", 3, "tokens")
    assert (shares.excess("light", 5), shares.excess("light", 6)) == (0, 1)
    shares.take("light", 1, "tokens")
    assert shares.excess("heavy", 1) > 0
    shares.remove("heavy", 6)
    assert shares.excess("heavy", 1) <= 0
    shares.remove("light", 1)
    assert (shares.share("another"), shares.total) == (5, 4)


def test_many_clients_share_twice_the_limit() -> None:
    shares = FairShare(10)
    shares.take("empty body", 0, "tokens")  # it shares nothing
    for client, amount in (("a", 10), ("b", 5), ("c", 3), ("d", 2)):
        shares.take(client, amount, "tokens")
    assert shares.excess("e", 1) == 1  # within its share of 2


async def hold(slots: ClientSlots, client: str, num_turns: int = 3) -> None:
    async with slots.slot(client):
        for _ in range(num_turns):
            await asyncio.sleep(0)


async def test_slots_are_shared_by_the_clients_that_have_some() -> None:
    slots = FairSlots(4)
    released = asyncio.Event()
    begun: list[str] = []

    async def work(client: str) -> None:
        async with slots.slot(client):
            begun.append(client)
            await released.wait()

    tasks: list[asyncio.Task[None]] = []
    for clients in ("aaaaa", "bbb", "cc", "dd", "e"):
        tasks += [asyncio.create_task(work(client)) for client in clients]
        await asyncio.sleep(0)
    assert "".join(begun) == "aaaabbcd"  # twice as many as there are
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert "".join(begun[8:]) == "e"
    tasks[4].cancel()  # waits
    released.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(begun) == sorted("aaaabbbccdde")
    assert not slots._taken


async def test_client_leaves_a_slot_to_others() -> None:
    slots = ClientSlots(3, 2)
    async with AsyncExitStack() as taken, asyncio.timeout(5):
        for _ in range(2):
            await taken.enter_async_context(slots.slot("heavy"))
        third = asyncio.ensure_future(hold(slots, "heavy"))
        await asyncio.sleep(0)  # it waits
        await hold(slots, "light")
        assert not third.done()
    async with asyncio.timeout(5):
        await third


@pytest.mark.parametrize("holder", ["a", "b"], ids=["waits for its own slot", "waits for any slot"])
async def test_cancelled_client_keeps_no_slot(holder: str) -> None:
    slots = ClientSlots(1, 1)

    async def holding() -> asyncio.Task[None]:
        task = asyncio.ensure_future(hold(slots, holder))
        await asyncio.sleep(0)
        return task

    async def all_are_free() -> None:
        await holders.pop()
        async with asyncio.timeout(5):
            await hold(slots, "a")
            await hold(slots, "c")
        holders.append(await holding())

    holders = [await holding()]
    assert await cancel_at_each_await(lambda: hold(slots, "a"), all_are_free) >= 4
    await holders.pop()


async def test_clients_that_are_gone_are_forgotten(clock: FakeClock) -> None:
    """While there is always a queue; clients without keys may be any number."""
    queue = FairQueue("m", 1, 1_000_000, clock)
    running = asyncio.Event()

    async def request(client: str) -> None:
        async with queue.admitted(client, 1, math.inf):
            await running.wait()

    waiting = [asyncio.create_task(request("first"))]
    for number in range(5_000):
        waiting.append(asyncio.create_task(request(f"client {number}")))
        await asyncio.sleep(0)
        if len(waiting) > 4:
            waiting.pop(0).cancel()
    assert len(queue._last_finish) < 1_100
    running.set()
    await asyncio.gather(*waiting)


def measured(clock: FakeClock, *seconds: float, idle_s: float = 0) -> ThroughputEstimate:
    """Return the estimate after items of 10, one after the other."""
    throughput = ThroughputEstimate(clock)
    assert throughput.seconds_for(1000) == 0
    for work_s in seconds:
        throughput.begin()
        clock.now_s += work_s
        throughput.end(10)
        clock.now_s += idle_s
    return throughput


def test_recent_busy_time_weighs_most(clock: FakeClock) -> None:
    assert measured(clock, 1, 1, idle_s=9).seconds_for(10) == pytest.approx(1)
    recent = measured(clock, *[1.0] * 100, *[0.1] * 400)
    assert recent.seconds_for(10) == pytest.approx(0.1, rel=0.2)


def test_quiet_time_forgets_the_past(clock: FakeClock) -> None:
    throughput = measured(clock, 60)
    assert throughput.seconds_for(10) == pytest.approx(60)
    clock.now_s += 11
    throughput.begin()
    assert throughput.seconds_for(10) == 0


def test_failed_work_counts_as_busy_time(clock: FakeClock) -> None:
    throughput = ThroughputEstimate(clock)
    throughput.begin()
    throughput.begin()
    clock.now_s += 1
    throughput.end(0)
    throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(1)


def test_burst_is_no_estimate_at_first(clock: FakeClock) -> None:
    throughput = ThroughputEstimate(clock)
    for _ in range(8):
        throughput.begin()
    clock.now_s += 2
    seconds = []
    for _ in range(8):
        throughput.end(10)
        throughput.begin()
        seconds.append(throughput.seconds_for(80))
    assert seconds == [0] * 6 + [pytest.approx(80 * 2 / 70), pytest.approx(2)]


def fair_queue(max_running: int = 1, max_waiting_cost: int = 1000) -> FairQueue:
    return FairQueue("a-model", max_running, max_waiting_cost)


async def measured_queue(clock: FakeClock, tokens_per_s: float) -> FairQueue:
    """Return a queue that has answered one request of 10 tokens."""
    queue = FairQueue("a-model", 1, 1000, clock)
    async with queue.admitted("z", 10, math.inf):
        clock.now_s += 10 / tokens_per_s
    return queue


async def work(
    queue: FairQueue,
    client: str = "a",
    cost: int = 10,
    deadline_s: float = math.inf,
    served: list[str] | None = None,
) -> None:
    async with queue.admitted(client, cost, deadline_s):
        if served is not None:
            served.append(client)
        await asyncio.sleep(0)


async def enqueue(
    queue: FairQueue, clients: Iterable[str], cost: int = 10, served: list[str] | None = None
) -> list[asyncio.Task[None]]:
    """Queue requests in this order."""
    tasks = []
    for client in clients:
        tasks.append(asyncio.create_task(work(queue, client, cost, served=served)))
        await asyncio.sleep(0)
    return tasks


async def test_running_requests_are_limited() -> None:
    queue = fair_queue(max_running=2)
    counts = [0]

    async def one() -> None:
        async with queue.admitted("a", 10, math.inf):
            counts.append(counts[-1] + 1)
            await asyncio.sleep(0)
            counts.append(counts[-1] - 1)

    await asyncio.gather(*(one() for _ in range(6)))
    assert max(counts) == 2


async def test_client_with_nothing_running_waits_for_few() -> None:
    queue = fair_queue(max_running=4)
    async with AsyncExitStack() as running, asyncio.timeout(60):
        for client in "aaaabc":
            await running.enter_async_context(queue.admitted(client, 10, math.inf))
        served: list[str] = []
        waiting = await enqueue(queue, "abd", served=served)
        assert served == []
    await asyncio.gather(*waiting)
    assert sorted(served) == ["a", "b", "d"]
    async with AsyncExitStack() as running, asyncio.timeout(60):  # all places are free
        for client in "aaaabc":
            await running.enter_async_context(queue.admitted(client, 10, math.inf))


@pytest.mark.parametrize(
    ("waiting", "order"),
    [("aaab", "abaa"), ("aaaabbbb", "abababab"), ("abcabc", "abcabc"), ("aabbbc", "abcabb")],
)
async def test_clients_alternate(waiting: str, order: str) -> None:
    queue = fair_queue()
    served: list[str] = []
    async with queue.admitted("z", 10, math.inf):
        tasks = await enqueue(queue, waiting, served=served)
    await asyncio.gather(*tasks)
    assert "".join(served) == order


@pytest.mark.parametrize("cancelled", range(0, 1024, 73))
async def test_order_stays_when_requests_leave(cancelled: int) -> None:
    """Requests of 10 and of 3 tokens are served by their virtual starts."""

    queue = fair_queue()
    served: list[str] = []
    starts: dict[str, tuple[int, int]] = {}
    tasks: dict[str, asyncio.Task[None]] = {}

    async def one(client: str, cost: int, name: str) -> None:
        async with queue.admitted(client, cost, math.inf):
            served.append(name)

    async with queue.admitted("z", 10, math.inf):
        for client, cost in (("a", 10), ("b", 3)):
            for number in range(5):
                name = f"{client}{number}"
                starts[name] = (number * cost, len(starts))
                tasks[name] = asyncio.create_task(one(client, cost, name))
                await asyncio.sleep(0)
        for name in [name for index, name in enumerate(tasks) if cancelled >> index & 1]:
            tasks.pop(name).cancel()
            await asyncio.sleep(0)
    await asyncio.gather(*tasks.values())
    assert served == sorted(tasks, key=lambda name: starts[name])


async def test_light_client_passes_a_heavy_one(clock: FakeClock) -> None:
    queue = await measured_queue(clock, 1)
    served: list[str] = []
    async with queue.admitted("heavy", 10, math.inf):
        heavy = await enqueue(queue, ["heavy"] * 9, cost=100)
        light = asyncio.create_task(work(queue, "light", 10, clock.now_s + 100, served))
        await asyncio.sleep(0)
        for task in heavy[1:]:
            task.cancel()
    await asyncio.gather(light, *heavy, return_exceptions=True)
    assert served == ["light"]


@pytest.mark.parametrize(
    ("client", "cost", "needed_s"),
    # 1.25 of 10 + 40, 10 + 120 and 10 + 300 tokens
    [("light", 20, 62.5), ("heavy", 20, 162.5), ("light", 200, 387.5)],
)
async def test_expected_time_of_a_request(
    clock: FakeClock, client: str, cost: int, needed_s: float
) -> None:
    queue = await measured_queue(clock, 1)
    async with queue.admitted("heavy", 10, math.inf) as waited_s:
        assert waited_s == 0
        waiting = await enqueue(queue, ["heavy"], cost=100)
        late = r"finish 0\.1 s after its deadline; retry after 1 s"
        with pytest.raises(Overloaded, match=late):
            await work(queue, client, cost, clock.now_s + needed_s - 0.1)
        in_time = work(queue, client, cost, clock.now_s + needed_s + 0.1)
        waiting.append(asyncio.create_task(in_time))
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)


async def test_queued_tokens_are_limited() -> None:
    queue = fair_queue(max_waiting_cost=100)
    await work(queue, cost=1000)
    async with queue.admitted("a", 10, math.inf):
        waiting = await enqueue(queue, "aa", cost=50)
        usage = r"this client has 100 of 100 tokens queued for a-model, .*needs 1; retry"
        with pytest.raises(Overloaded, match=usage):
            await work(queue, cost=1)
    await asyncio.gather(*waiting)


async def test_wait_ends_at_the_deadline(clock: FakeClock) -> None:
    queue = FairQueue("a-model", 1, 1000, clock)
    async with queue.admitted("a", 10, math.inf):
        with pytest.raises(DeadlineExceeded, match="still queued for a-model at its deadline"):
            await work(queue, deadline_s=clock.now_s + 0.01)
    await work(queue)
    with pytest.raises(ValueError, match="broken"):
        async with queue.admitted("a", 10, math.inf):
            raise ValueError("broken")
    await asyncio.wait_for(work(queue), 60)


@pytest.mark.parametrize("is_admitted", [False, True], ids=["waiting", "just admitted"])
async def test_cancelled_request_is_replaced(is_admitted: bool) -> None:
    queue = fair_queue()
    served: list[str] = []
    async with queue.admitted("a", 10, math.inf):
        first, second = await enqueue(queue, "bc", served=served)
        if not is_admitted:
            first.cancel()
    if is_admitted:
        first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 60)
    await until(lambda: served)
    assert served == ["c"]


async def test_cancelled_requests_empty_the_queue() -> None:
    depth = QUEUE_DEPTH.labels("a-model", "admission")

    queue = fair_queue(max_waiting_cost=10)

    async def hold() -> None:
        async with queue.admitted("holder", 10, math.inf):
            for _ in range(4):
                await asyncio.sleep(0)

    async def holding() -> asyncio.Task[None]:
        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        return task

    async def nothing_is_left() -> None:
        await holders.pop()
        assert depth._value.get() == before
        holder = await holding()
        waiting = await enqueue(queue, "b", cost=10)  # all that may be queued
        assert depth._value.get() == before + 1
        async with asyncio.timeout(60):
            await asyncio.gather(holder, *waiting)
        holders.append(await holding())

    before = depth._value.get()
    holders = [await holding()]
    waits = lambda: work(queue, "b", cost=7)  # noqa: E731
    assert await cancel_at_each_await(waits, nothing_is_left) == 4
    await holders.pop()
