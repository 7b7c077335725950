import asyncio
from contextlib import AsyncExitStack

import pytest

from service.inference.core import AnswerPlaces
from tests.support.core_calls import until
from tests.support.fake_service import context, make_core


@pytest.mark.parametrize("which", ["lent", "further"])
def test_answer_waits_for_any_place(which: str) -> None:
    async def scenario() -> None:
        core = make_core(max_pending=2)
        call = context()
        await core.places.take(call)
        places = AnswerPlaces(core.places)
        async with AsyncExitStack() as lent, AsyncExitStack() as further, AsyncExitStack() as third:
            first = await lent.enter_async_context(places.place(call))
            second = await further.enter_async_context(places.place(call))
            assert (first.needs_place, second.needs_place) == (False, True)
            waiting = asyncio.create_task(third.enter_async_context(places.place(call)))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not waiting.done()
            await (lent if which == "lent" else further).aclose()
            await until(waiting.done)
            assert waiting.result().needs_place is (which == "further")
        await core.places.leave(call)

    asyncio.run(scenario())


def test_failed_answer_returns_its_place() -> None:
    async def scenario() -> None:
        core = make_core(max_pending=1)
        call = context()
        await core.places.take(call)
        places = AnswerPlaces(core.places)
        with pytest.raises(ZeroDivisionError):
            async with places.place(call):
                raise ZeroDivisionError
        async with places.place(call) as lent:
            waiting = asyncio.create_task(places.place(call).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            assert not lent.needs_place
        async with places.place(call) as lent:
            assert not lent.needs_place

    asyncio.run(scenario())


def test_lent_place_stays_the_calls() -> None:
    async def scenario() -> None:
        core = make_core(max_pending=1)
        call = context()
        await core.places.take(call)
        async with AnswerPlaces(core.places).place(call) as lent:
            await core.places.leave(lent)
        assert call.place.is_taken

    asyncio.run(scenario())
