import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from service.admission.fair_queue import FairQueue, QueuedRequest
from service.errors import DeadlineExceeded, Overloaded
from tests.support.core_calls import run, until


def turns(max_running: int = 1, max_waiting_cost: int = 1000) -> FairQueue:
    return FairQueue("a-model", max_running, max_waiting_cost)


def demand(client: str = "a", cost: int = 10, timeout_s: float = math.inf) -> QueuedRequest:
    return QueuedRequest(client, cost, time.monotonic() + timeout_s)


async def work(model: FairQueue, asked: QueuedRequest, note: Callable[[str], None], work_s: float = 0.0) -> None:
    async with model.admitted(asked):
        note(asked.client)
        await asyncio.sleep(work_s)


async def enqueue(
    model: FairQueue, *requests: QueuedRequest, note: Callable[[str], None] = print
) -> list[asyncio.Task[None]]:
    """Let requests wait, in this order."""
    tasks = []
    for each in requests:
        tasks.append(asyncio.create_task(work(model, each, note)))
        await asyncio.sleep(0)
    return tasks


def test_no_more_run_than_may() -> None:
    async def ask() -> int:
        model, running, most = turns(max_running=3), 0, 0

        async def one() -> None:
            nonlocal running, most
            async with model.admitted(demand()):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.001)
                running -= 1

        await asyncio.gather(*(one() for _ in range(20)))
        return most

    assert run(ask()) == 3


@pytest.mark.parametrize(
    ("waiting", "order"), [("aaab", "abaa"), ("aaaabbbb", "abababab"), ("abcabc", "abcabc"), ("aabbbc", "abcabb")]
)
def test_clients_have_turns_alike_whoever_came_first(waiting: str, order: str) -> None:
    async def ask() -> str:
        model, served = turns(), list[str]()
        async with model.admitted(demand("z")):
            tasks = await enqueue(model, *map(demand, waiting), note=served.append)
        await asyncio.gather(*tasks)
        return "".join(served)

    assert run(ask()) == order


def test_a_client_of_dear_requests_has_fewer_turns() -> None:
    async def ask() -> str:
        model, served = turns(), list[str]()
        dear, cheap = [demand("d", 40)] * 3, [demand("c", 10)] * 8
        async with model.admitted(demand("z")):
            tasks = await enqueue(model, *dear, *cheap, note=served.append)
        await asyncio.gather(*tasks)
        return "".join(served)

    served = run(ask())
    assert served[:6].count("c") >= 4


def test_one_that_would_wait_in_vain_is_refused_with_the_time_to_come_back() -> None:
    async def ask() -> Overloaded:
        model = turns()
        for _ in range(3):
            await work(model, demand(cost=10), print, 0.05)  # 200 tokens a second
        async with model.admitted(demand()):
            waiting = await enqueue(model, *[demand(cost=100)] * 5)
            with pytest.raises(Overloaded, match="longer than this request's time") as caught:
                await work(model, demand(cost=10, timeout_s=0.5), print)
            for task in waiting:
                task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return caught.value

    assert 2 <= run(ask()).retry_after_s <= 5


def test_a_light_client_is_let_in_where_a_heavy_one_waits_long() -> None:
    async def ask() -> list[str]:
        model, served = turns(), list[str]()
        for _ in range(3):
            await work(model, demand(cost=10), print, 0.02)
        async with model.admitted(demand("heavy")):
            heavy = await enqueue(model, *[demand("heavy", 100)] * 9)
            light = asyncio.create_task(work(model, demand("light", 10, timeout_s=2), served.append))
            await asyncio.sleep(0)
            for task in heavy[1:]:
                task.cancel()
        await asyncio.gather(light, *heavy, return_exceptions=True)
        return served

    assert run(ask()) == ["light"]


def test_too_much_that_waits_is_refused() -> None:
    async def ask() -> None:
        model = turns(max_waiting_cost=100)
        async with model.admitted(demand()):
            waiting = await enqueue(model, *[demand(cost=50)] * 2)
            with pytest.raises(Overloaded, match="100 tokens of this client wait for a-model already"):
                await work(model, demand(cost=1), print)
        await asyncio.gather(*waiting)

    run(ask())


def test_a_deadline_that_passes_in_the_queue_ends_the_waiting() -> None:
    async def ask() -> None:
        model = turns()
        async with model.admitted(demand()):
            with pytest.raises(DeadlineExceeded, match="a-model did not answer in the time"):
                await work(model, demand(timeout_s=0.01), print)
        await work(model, demand(), print)

    run(ask())


@pytest.mark.parametrize("is_given", [False, True], ids=["waiting", "just given"])
def test_one_that_is_cancelled_passes_its_turn_on(is_given: bool) -> None:
    async def ask() -> list[str]:
        model, served = turns(), list[str]()
        async with model.admitted(demand()):
            first, second = await enqueue(model, demand("b"), demand("c"), note=served.append)
            if not is_given:
                first.cancel()
        if is_given:
            first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        await asyncio.wait_for(second, 5)
        await until(lambda: served)
        return served

    assert run(ask()) == ["c"]


def test_work_that_fails_gives_its_turn_back() -> None:
    async def ask() -> None:
        model = turns()
        with pytest.raises(ValueError, match="broken"):
            async with model.admitted(demand()):
                raise ValueError("broken")
        await asyncio.wait_for(work(model, demand(), print), 5)

    run(ask())
