"""Slots that clients wait for: a client has its own maximum, and one that leaves at any moment
keeps none.
"""

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.admission.fair_queue import ClientSlots
from tests.support.cancellation import cancel_at_each_await
from tests.support.core_calls import run


async def hold(slots: ClientSlots, client: str, num_turns: int = 3) -> None:
    async with slots.slot(client):
        for _ in range(num_turns):
            await asyncio.sleep(0)


def test_one_client_leaves_a_slot_to_the_others() -> None:
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
def test_a_client_that_leaves_at_any_moment_keeps_no_slot(holder: str) -> None:
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
