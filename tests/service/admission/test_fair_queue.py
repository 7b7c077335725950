"""Slots that clients wait for: a client has its own maximum, and one that leaves at any moment
keeps none.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_queue import (
    ClientSlots,
    FairQueue,
    FairShare,
    QueuedRequest,
    ThroughputEstimate,
)
from service.errors import DeadlineExceeded, Overloaded
from tests.support.api_keys import FakeClock
from tests.support.cancellation import cancel_at_each_await
from tests.support.core_calls import run, until
from wire.telemetry.runner_metrics import QUEUE_DEPTH


def test_single_client_uses_the_limit() -> None:
    shares = FairShare(10)
    shares.add("a", 7)
    assert shares.excess("a", 3) == 0
    assert shares.excess("a", 4) == 1


def test_limit_of_a_single_client() -> None:
    shares = FairShare(10, max_of_client=4)
    shares.take("a", 4, "things")
    with pytest.raises(
        Overloaded, match="this client has 4 of 4 things, all clients together 4 of 20"
    ):
        shares.take("a", 1, "things")
    shares.take("b", 4, "things")
    assert shares.total == 8


def test_heavy_client_locks_out_no_other() -> None:
    shares = FairShare(10)
    shares.add("heavy", 10)
    assert shares.excess("light", 5) <= 0
    assert shares.excess("light", 6) > 0
    shares.add("light", 1)
    assert shares.excess("heavy", 1) > 0
    shares.remove("heavy", 6)
    assert shares.excess("heavy", 1) <= 0


def test_idle_client_is_forgotten() -> None:
    shares = FairShare(10)
    shares.add("a", 2)
    shares.remove("a", 2)
    assert shares.num_clients_with("b") == 1
    assert shares.total == 0


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 5))))
def test_overcommit_is_limited_to_twice(requests: list[tuple[str, int]]) -> None:
    shares = FairShare(10)
    for client, amount in requests:
        if shares.excess(client, amount) <= 0:
            shares.add(client, amount)
    assert shares.total <= 20


def test_many_clients_share_twice_the_limit() -> None:
    shares = FairShare(10)
    for client, amount in (("a", 10), ("b", 5), ("c", 3), ("d", 2)):
        shares.take(client, amount, "tokens")
    assert shares.excess("e", 1) == 1  # within its share of 2


async def hold(slots: ClientSlots, client: str, num_turns: int = 3) -> None:
    async with slots.slot(client):
        for _ in range(num_turns):
            await asyncio.sleep(0)


def test_client_leaves_a_slot_to_others() -> None:
    async def scenario() -> None:
        slots = ClientSlots(3, 2)
        async with AsyncExitStack() as held:
            for _ in range(2):
                await held.enter_async_context(slots.slot("heavy"))
            third = asyncio.ensure_future(hold(slots, "heavy"))
            await asyncio.sleep(0)  # it waits
            async with asyncio.timeout(5):
                await hold(slots, "light")
            assert not third.done()
        async with asyncio.timeout(5):
            await third

    run(scenario())


@pytest.mark.parametrize("holder", ["a", "b"], ids=["waits for its own slot", "waits for any slot"])
def test_cancelled_client_keeps_no_slot(holder: str) -> None:
    async def scenario() -> None:
        slots = ClientSlots(1, 1)

        async def held() -> asyncio.Task[None]:
            holding = asyncio.ensure_future(hold(slots, holder))
            await asyncio.sleep(0)
            return holding

        async def all_are_free() -> None:
            await holdings.pop()
            async with asyncio.timeout(5):
                await hold(slots, "a")
                await hold(slots, "c")
            holdings.append(await held())

        holdings = [await held()]
        assert await cancel_at_each_await(lambda: hold(slots, "a"), all_are_free) >= 4
        await holdings.pop()

    run(scenario())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_no_estimate_without_measurements() -> None:
    assert ThroughputEstimate(Clock()).seconds_for(1000) == 0


def test_concurrent_work_adds_up() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for _ in range(4):
        throughput.begin()
    clock.now_s += 2
    for _ in range(4):
        throughput.end(10)
    assert throughput.seconds_for(20) == pytest.approx(1)


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for _ in range(2):
        throughput.begin()
        clock.now_s += 1
        throughput.end(10)
        clock.now_s += 1000
    assert throughput.seconds_for(10) == pytest.approx(1)


def test_recent_work_weighs_most() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for work_s in [1.0] * 100 + [0.1] * 400:
        throughput.begin()
        clock.now_s += work_s
        throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(0.1, rel=0.2)


def test_failed_work_counts_as_busy_time() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    throughput.begin()
    throughput.begin()
    clock.now_s += 1
    throughput.end(0)
    throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(1)


def test_burst_is_no_estimate_at_first() -> None:
    clock = Clock()
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


def test_quiet_time_forgets_the_past() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    throughput.begin()
    clock.now_s += 60
    throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(60)
    clock.now_s += 11
    throughput.begin()
    assert throughput.seconds_for(10) == 0


def fair_queue(max_running: int = 1, max_waiting_cost: int = 1000) -> FairQueue:
    return FairQueue("a-model", max_running, max_waiting_cost)


async def measured_queue(clock: FakeClock, tokens_per_s: float) -> FairQueue:
    """Return a queue that has answered one request of 10 tokens."""
    queue = FairQueue("a-model", 1, 1000, clock)
    async with queue.admitted(QueuedRequest("z", 10, math.inf)):
        clock.now_s += 10 / tokens_per_s
    return queue


def queued(client: str = "a", cost: int = 10, timeout_s: float = math.inf) -> QueuedRequest:
    return QueuedRequest(client, cost, time.monotonic() + timeout_s)


async def work(queue: FairQueue, request: QueuedRequest, note: Callable[[str], None]) -> None:
    async with queue.admitted(request):
        note(request.client)
        await asyncio.sleep(0)


async def enqueue(
    queue: FairQueue, *requests: QueuedRequest, note: Callable[[str], None] = print
) -> list[asyncio.Task[None]]:
    """Queue requests in this order."""
    tasks = []
    for each in requests:
        tasks.append(asyncio.create_task(work(queue, each, note)))
        await asyncio.sleep(0)
    return tasks


def test_running_requests_are_limited() -> None:
    async def scenario() -> int:
        queue = fair_queue(max_running=3)
        num_running = 0
        max_running = 0

        async def one() -> None:
            nonlocal num_running, max_running
            async with queue.admitted(queued()):
                num_running += 1
                max_running = max(max_running, num_running)
                await asyncio.sleep(0.001)
                num_running -= 1

        await asyncio.gather(*(one() for _ in range(20)))
        return max_running

    assert run(scenario()) == 3


@pytest.mark.parametrize(
    ("waiting", "order"),
    [("aaab", "abaa"), ("aaaabbbb", "abababab"), ("abcabc", "abcabc"), ("aabbbc", "abcabb")],
)
def test_clients_alternate(waiting: str, order: str) -> None:
    async def scenario() -> str:
        queue = fair_queue()
        served = list[str]()
        async with queue.admitted(queued("z")):
            tasks = await enqueue(queue, *map(queued, waiting), note=served.append)
        await asyncio.gather(*tasks)
        return "".join(served)

    assert run(scenario()) == order


def test_expensive_requests_wait_longer() -> None:
    async def scenario() -> str:
        queue = fair_queue()
        served = list[str]()
        expensive = [queued("d", 40)] * 3
        cheap = [queued("c", 10)] * 8
        async with queue.admitted(queued("z")):
            tasks = await enqueue(queue, *expensive, *cheap, note=served.append)
        await asyncio.gather(*tasks)
        return "".join(served)

    served = run(scenario())
    assert served[:6].count("c") >= 4


def test_late_request_is_refused_at_once() -> None:
    async def scenario() -> Overloaded:
        clock = FakeClock()
        queue = await measured_queue(clock, 200)
        async with queue.admitted(queued()):
            waiting = await enqueue(queue, *[queued(cost=100)] * 5)
            with pytest.raises(Overloaded, match="after its deadline; retry after") as caught:
                await work(queue, QueuedRequest("a", 10, clock.now_s + 0.5), print)
            for task in waiting:
                task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return caught.value

    assert 2 <= run(scenario()).retry_after_s <= 5


def test_light_client_passes_a_heavy_one() -> None:
    async def scenario() -> list[str]:
        clock = FakeClock()
        queue = await measured_queue(clock, 1)
        served = list[str]()
        async with queue.admitted(queued("heavy")):
            heavy = await enqueue(queue, *[queued("heavy", 100)] * 9)
            light = asyncio.create_task(
                work(queue, QueuedRequest("light", 10, clock.now_s + 100), served.append)
            )
            await asyncio.sleep(0)
            for task in heavy[1:]:
                task.cancel()
        await asyncio.gather(light, *heavy, return_exceptions=True)
        return served

    assert run(scenario()) == ["light"]


@pytest.mark.parametrize(
    ("client", "cost", "needed_s"),
    # 1.25 of 10 + 40, 10 + 120 and 10 + 300 tokens
    [("light", 20, 62.5), ("heavy", 20, 162.5), ("light", 200, 387.5)],
)
def test_expected_time_of_a_request(client: str, cost: int, needed_s: float) -> None:
    async def scenario() -> None:
        clock = FakeClock()
        queue = await measured_queue(clock, 1)
        async with queue.admitted(QueuedRequest("heavy", 10, math.inf)) as waited_s:
            assert waited_s == 0
            waiting = await enqueue(queue, queued("heavy", 100))
            with pytest.raises(Overloaded, match=r"finish 0\.1 s after its deadline"):
                await work(queue, QueuedRequest(client, cost, clock.now_s + needed_s - 0.1), print)
            waiting += await enqueue(
                queue, QueuedRequest(client, cost, clock.now_s + needed_s + 0.1)
            )
        await asyncio.gather(*waiting)

    run(scenario())


def test_order_stays_when_requests_leave() -> None:
    async def scenario(cancelled: int) -> tuple[list[str], list[str]]:
        queue = fair_queue()
        served = list[str]()
        starts: dict[str, tuple[int, int]] = {}
        tasks: dict[str, asyncio.Task[None]] = {}

        async def one(client: str, cost: int, name: str) -> None:
            async with queue.admitted(queued(client, cost)):
                served.append(name)

        async with queue.admitted(queued("z")):
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
        return served, sorted(tasks, key=lambda name: starts[name])

    for cancelled in range(0, 1024, 7):
        served, expected = run(scenario(cancelled))
        assert served == expected


def test_queued_tokens_are_limited() -> None:
    async def scenario() -> None:
        queue = fair_queue(max_waiting_cost=100)
        async with queue.admitted(queued()):
            waiting = await enqueue(queue, *[queued(cost=50)] * 2)
            with pytest.raises(
                Overloaded,
                match=r"this client has 100 of 100 tokens queued for a-model, .*needs 1; retry",
            ):
                await work(queue, queued(cost=1), print)
        await asyncio.gather(*waiting)

    run(scenario())


def test_deadline_ends_the_wait() -> None:
    async def scenario() -> None:
        queue = fair_queue()
        async with queue.admitted(queued()):
            with pytest.raises(DeadlineExceeded, match="still queued for a-model at its deadline"):
                await work(queue, queued(timeout_s=0.01), print)
        await work(queue, queued(), print)

    run(scenario())


@pytest.mark.parametrize("is_admitted", [False, True], ids=["waiting", "just admitted"])
def test_cancelled_request_is_replaced(is_admitted: bool) -> None:
    async def scenario() -> list[str]:
        queue = fair_queue()
        served = list[str]()
        async with queue.admitted(queued()):
            first, second = await enqueue(queue, queued("b"), queued("c"), note=served.append)
            if not is_admitted:
                first.cancel()
        if is_admitted:
            first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await asyncio.wait_for(second, 60)
        await until(lambda: served)
        return served

    assert run(scenario()) == ["c"]


def test_cancelled_requests_empty_the_queue() -> None:
    async def scenario() -> None:
        queue = fair_queue(max_waiting_cost=10)

        async def hold() -> None:
            async with queue.admitted(queued("holder")):
                for _ in range(4):
                    await asyncio.sleep(0)

        async def held() -> asyncio.Task[None]:
            holding = asyncio.create_task(hold())
            await asyncio.sleep(0)
            return holding

        async def waiting() -> None:
            await work(queue, queued("b", cost=7), print)

        async def nothing_is_left() -> None:
            await holdings.pop()
            holding = await held()
            async with asyncio.timeout(60):
                await work(queue, queued("b", cost=10), print)  # all that may be queued
            await holding
            holdings.append(await held())

        holdings = [await held()]
        assert await cancel_at_each_await(waiting, nothing_is_left) == 4
        await holdings.pop()

    run(scenario())


def test_queue_depth_is_a_metric() -> None:
    async def scenario() -> list[float]:
        queue = fair_queue()
        depth = QUEUE_DEPTH.labels("a-model", "admission")
        depths = [depth._value.get()]
        async with queue.admitted(queued()):
            tasks = await enqueue(queue, queued("b"), queued("c"))
            depths.append(depth._value.get())
        await asyncio.gather(*tasks)
        return [*depths, depth._value.get()]

    before, waiting, after = run(scenario())
    assert (waiting - before, after - before) == (2, 0)


def test_failed_request_is_replaced() -> None:
    async def scenario() -> None:
        queue = fair_queue()
        with pytest.raises(ValueError, match="broken"):
            async with queue.admitted(queued()):
                raise ValueError("broken")
        await asyncio.wait_for(work(queue, queued(), print), 60)

    run(scenario())
