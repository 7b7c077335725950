import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
from prometheus_client import REGISTRY

from runners.messages import Array
from service.errors import Overloaded
from service.shared_memory import SharedMemory
from service.vision_cache import EncodedFeatures, Features, FeaturesKey, VisionCache
from tests.support.core_calls import until
from tests.support.memory_use import PAGE_BYTES, allocated

ResultT = TypeVar("ResultT")
NUM_BYTES = 40  # of the features of one image
MAX_ENCODING = 3


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(coroutine)


def key(value: int, model_id: str = "a", build_key: str = "1") -> FeaturesKey:
    return FeaturesKey.of(model_id, build_key, np.full((2, 2, 3), value, dtype=np.uint8))


@dataclass(slots=True)
class Encoder:
    """Counts what it is asked to encode; waits for `released` where that is given."""

    released: asyncio.Event | None = None
    failure: Exception | None = None
    num_encoded: int = 0
    features: Features = field(default_factory=lambda: Array.of(np.arange(NUM_BYTES // 4, dtype=np.float32)))

    async def __call__(self) -> EncodedFeatures:
        self.num_encoded += 1
        if self.released is not None:
            await self.released.wait()
        if self.failure is not None:
            raise self.failure
        return EncodedFeatures(self.features, 0.5, 0.25)


def test_the_second_time_is_a_hit_with_the_same_bytes() -> None:
    async def ask() -> tuple[EncodedFeatures, EncodedFeatures]:
        cache = VisionCache(1000, MAX_ENCODING)
        return await cache.get(key(1), encoder), await cache.get(key(1), encoder)

    encoder = Encoder()
    first, second = run(ask())
    assert (first.outcome, second.outcome) == ("miss", "hit")
    assert second.image_features is first.image_features is encoder.features
    assert (second.encode_s, second.queue_s) == (0.0, 0.0)
    assert encoder.num_encoded == 1


def test_other_pixels_model_or_build_is_another_image() -> None:
    async def ask() -> list[str]:
        cache = VisionCache(1000, MAX_ENCODING)
        keys = [key(1), key(2), key(1, model_id="b"), key(1, build_key="2"), key(1)]
        return [(await cache.get(each, Encoder())).outcome for each in keys]

    assert run(ask()) == ["miss", "miss", "miss", "miss", "hit"]


def test_requests_at_one_time_encode_once() -> None:
    async def ask() -> list[EncodedFeatures]:
        encoder.released = asyncio.Event()
        cache = VisionCache(1000, MAX_ENCODING)
        waiting = [asyncio.ensure_future(cache.get(key(1), encoder)) for _ in range(5)]
        await asyncio.sleep(0.01)
        encoder.released.set()
        return await asyncio.gather(*waiting)

    encoder = Encoder()
    outcomes = run(ask())
    assert [each.outcome for each in outcomes] == ["miss", *["joined"] * 4]
    assert encoder.num_encoded == 1
    assert all(each.queue_s >= 0.01 and each.encode_s == 0 for each in outcomes[1:])


def test_a_failure_reaches_all_who_joined_and_is_not_kept() -> None:
    async def ask() -> list[EncodedFeatures | BaseException]:
        encoder.released = asyncio.Event()
        cache = VisionCache(1000, MAX_ENCODING)
        waiting = [asyncio.ensure_future(cache.get(key(1), encoder)) for _ in range(3)]
        await asyncio.sleep(0)
        encoder.released.set()
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        return [*failed, await cache.get(key(1), Encoder())]

    encoder = Encoder(failure=ValueError("broken"))
    *failed, after = run(ask())
    assert all(isinstance(each, ValueError) for each in failed)
    assert isinstance(after, EncodedFeatures)
    assert after.outcome == "miss"


def test_a_cancelled_request_leaves_the_encoding_to_those_that_joined() -> None:
    async def ask() -> EncodedFeatures:
        encoder.released = asyncio.Event()
        cache = VisionCache(1000, MAX_ENCODING)
        first = asyncio.ensure_future(cache.get(key(1), encoder))
        second = asyncio.ensure_future(cache.get(key(1), encoder))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        encoder.released.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    encoder = Encoder()
    assert run(ask()).outcome == "joined"
    assert encoder.num_encoded == 1


def test_encodings_whose_callers_went_count_against_the_most_at_one_time() -> None:
    async def ask() -> str:
        encoder.released = asyncio.Event()
        cache = VisionCache(1000, MAX_ENCODING)
        for value in range(MAX_ENCODING):
            caller = asyncio.ensure_future(cache.get(key(value), encoder))
            await asyncio.sleep(0)
            caller.cancel()
        with pytest.raises(Overloaded, match="3 images are being encoded"):
            await cache.get(key(9), encoder)
        joined = asyncio.ensure_future(cache.get(key(0), encoder))
        await asyncio.sleep(0)
        encoder.released.set()
        assert (await joined).outcome == "joined"
        return (await cache.get(key(9), encoder)).outcome

    encoder = Encoder()
    assert run(ask()) == "miss"


def test_the_least_recently_used_leave_first() -> None:
    async def ask() -> list[str]:
        cache = VisionCache(2 * NUM_BYTES, MAX_ENCODING)
        return [(await cache.get(key(value), Encoder())).outcome for value in (1, 2, 1, 3, 1, 2)]

    assert run(ask()) == ["miss", "miss", "hit", "miss", "hit", "miss"]


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_shared_memory_is_bounded_by_the_cache(num_kept: int) -> None:
    async def encode() -> EncodedFeatures:
        block = memory.reserve((10,), "float32")
        block.write(np.ones(10, dtype=np.float32))
        return EncodedFeatures(block, 0.5, 0.25)

    async def ask() -> None:
        cache = VisionCache(num_kept * PAGE_BYTES + PAGE_BYTES - 1, MAX_ENCODING)
        for value in range(20):
            await cache.get(key(value), encode)
        await until(lambda: allocated(memory) == num_kept * PAGE_BYTES)  # asyncio lets go of the last one's task

    memory = SharedMemory()
    run(ask())


def test_nothing_is_kept_without_room() -> None:
    async def ask() -> list[str]:
        cache = VisionCache(0, MAX_ENCODING)
        return [(await cache.get(key(1), Encoder())).outcome for _ in range(2)]

    assert run(ask()) == ["miss", "miss"]


def test_outcomes_and_bytes_are_counted() -> None:
    async def ask() -> None:
        cache = VisionCache(NUM_BYTES, MAX_ENCODING)
        for value in (1, 1, 2):
            await cache.get(key(value, model_id="counted"), Encoder())

    run(ask())
    requests = "diptych_vision_cache_requests_total"
    assert REGISTRY.get_sample_value(requests, {"model": "counted", "outcome": "miss"}) == 2
    assert REGISTRY.get_sample_value(requests, {"model": "counted", "outcome": "hit"}) == 1
    assert REGISTRY.get_sample_value("diptych_vision_cache_bytes", {"model": "counted"}) == NUM_BYTES
