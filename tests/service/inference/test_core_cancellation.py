"""A client that leaves at any moment leaves nothing behind: no place, no lease, no slot, no
sequence.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, cast

import pytest

from service.admission.places import RequestContext
from service.admission.quotas import Quota, QuotaLimits
from service.admission.shared_limits import SharedQuota
from service.admission.traffic_gaps import TrafficGaps
from service.inference.core import Core
from tests.support.cancellation import cancel_at_each_await
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PNG, context, make_core

FIELDS = {"task": "object_detection"}


class SharedLeases:
    """A store of leases that answers between two turns of the event loop, as a store over the
    network does.
    """

    def __init__(self) -> None:
        self.held: set[str] = set()
        self._releases: set[asyncio.Task[None]] = set()

    # the interface has it
    async def lease(self, max_leases: int, lease: str, seconds: float) -> bool:  # noqa: ARG002
        await asyncio.sleep(0)
        assert len(self.held) < max_leases
        self.held.add(lease)
        await asyncio.sleep(0)
        return True

    def release(self, lease: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._release(lease))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task

    async def released(self) -> None:
        await asyncio.gather(*self._releases)

    async def _release(self, lease: str) -> None:
        await asyncio.sleep(0)
        self.held.discard(lease)


Call = Callable[[Core, RequestContext], Coroutine[Any, Any, object]]


async def predict(core: Core, context: RequestContext) -> object:
    return await core.predict(PNG, FIELDS, context)


async def compare(core: Core, context: RequestContext) -> object:
    return await core.compare(PNG, {"task": "captioning"}, context)


async def stream(core: Core, context: RequestContext) -> None:
    await core.places.take(context)  # before the body is read, as every interface does
    async with aclosing(
        cast(AsyncGenerator[object, None], core.stream(PNG, FIELDS, context))
    ) as pieces:
        async for _ in pieces:
            pass


@pytest.mark.parametrize("call", [predict, compare, stream])
def test_a_client_that_leaves_at_any_moment_leaves_all_limits_free(call: Call) -> None:
    async def scenario() -> None:
        leases = SharedLeases()
        gaps = TrafficGaps()
        quota = Quota("key", QuotaLimits(max_concurrent=1), shared=cast(SharedQuota, leases))
        core = make_core(max_pending=1, max_running=1, gaps=gaps)

        async def request() -> None:
            await call(core, RequestContext("request-1", "test", math.inf, quota))

        async def all_is_free() -> None:
            async with asyncio.timeout(10):
                while len(asyncio.all_tasks()) > 1:
                    await asyncio.sleep(0)
                await leases.released()
                assert leases.held == set()
                await gaps.wait()
                await request()

        assert await cancel_at_each_await(request, all_is_free) >= 6

    run(scenario())


def test_a_stream_that_is_cancelled_while_the_runner_writes_ends_its_sequences() -> None:
    async def scenario() -> None:
        decoder.released = asyncio.Event()
        streaming = asyncio.create_task(stream(core, context()))
        await until(lambda: decoder.specs)
        streaming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await streaming
        await until(lambda: decoder.num_cancelled == 1)

    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(decoders={FLORENCE_ID: decoder})
    run(scenario())
