import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from runners.encoder.features_cache import CachedFeatures, VisionCache
from wire.runner_messages import EncodedImage, Failed

ResultT = TypeVar("ResultT")
NUM_BYTES = 40  # features of one image
MAX_ENCODING = 3
PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)


def run(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    return asyncio.run(coroutine)


@dataclass(slots=True)
class Encoder:
    """Counts the images that it encodes; waits for `released`, if set."""

    released: asyncio.Event | None = None
    failure: Exception | None = None
    failed: Failed | None = None
    encode_s: float = 0.005
    num_encoded: int = 0
    features: torch.Tensor = field(
        default_factory=lambda: torch.arange(NUM_BYTES // 4, dtype=torch.float32)[None]
    )
    cache: VisionCache | None = None

    def behind(self, max_bytes: int = 1000, model_id: str = "a") -> VisionCache:
        self.cache = VisionCache(model_id, max_bytes, MAX_ENCODING, self.encode)
        return self.cache

    async def encode(self, image_key: str) -> EncodedImage:
        assert self.cache is not None
        self.num_encoded += 1
        if self.released is not None:
            await self.released.wait()
        if self.failure is not None:
            raise self.failure
        if self.failed is None:
            self.cache.encodings[image_key].features = self.features.clone()
        return EncodedImage(encode_s=self.encode_s, failed=self.failed)


async def outcome(cache: VisionCache, key: str) -> str:
    found = await cache.get(key, PIXELS)
    assert isinstance(found, CachedFeatures)
    return found.source.outcome


def test_the_second_call_is_a_hit_that_needs_no_pixels() -> None:
    async def call() -> tuple[Any, Any, Any]:
        cache = encoder.behind()
        return await cache.get("1", None), await cache.get("1", PIXELS), await cache.get("1", None)

    encoder = Encoder()
    missing, first, second = run(call())
    assert missing is None
    assert (first.source.outcome, second.source.outcome) == ("miss", "hit")
    assert second.tensor is first.tensor
    assert torch.equal(first.tensor, encoder.features)
    assert (second.source.encode_s, second.source.queue_s) == (0.0, 0.0)
    assert encoder.num_encoded == 1


def test_concurrent_calls_encode_once_and_the_others_need_no_pixels() -> None:
    async def call() -> list[Any]:
        encoder.released = asyncio.Event()
        cache = encoder.behind()
        waiting = [
            asyncio.ensure_future(cache.get("1", PIXELS if first else None))
            for first in (True, *[False] * 4)
        ]
        await asyncio.sleep(0.01)
        encoder.released.set()
        return await asyncio.gather(*waiting)

    encoder = Encoder()
    found = [each.source for each in run(call())]
    assert [each.outcome for each in found] == ["miss", *["joined"] * 4]
    assert encoder.num_encoded == 1
    assert (found[0].encode_s, found[1].encode_s) == (0.005, 0.0)
    assert all(each.queue_s > 0 for each in found)


def test_the_queue_is_the_time_beyond_the_encoding_and_never_negative() -> None:
    async def call() -> tuple[Any, Any]:
        cache = encoder.behind()
        return await asyncio.gather(cache.get("1", PIXELS), cache.get("1", None))

    encoder = Encoder(encode_s=60.0)  # longer than the call took
    miss, joined = [each.source for each in run(call())]
    assert (miss.encode_s, miss.queue_s) == (60.0, 0.0)
    assert joined.encode_s == 0.0
    assert 0 < joined.queue_s < 60


@pytest.mark.parametrize(
    "failing",
    [{"failed": Failed(code="internal", message="broken")}, {"failure": ValueError("broken")}],
    ids=["of the image", "of the batcher"],
)
def test_a_failure_reaches_all_joined_calls_and_is_not_cached(failing: dict[str, Any]) -> None:
    async def call() -> tuple[list[Any], str]:
        encoder.released = asyncio.Event()
        cache = encoder.behind()
        waiting = [asyncio.ensure_future(cache.get("1", PIXELS)) for _ in range(3)]
        await asyncio.sleep(0)
        encoder.released.set()
        failed = await asyncio.gather(*waiting)
        encoder.failed = encoder.failure = None
        return failed, await outcome(cache, "1")

    encoder = Encoder(**failing)
    failed, after = run(call())
    assert all(isinstance(each, Failed) for each in failed)
    assert after == "miss"


def test_cancelling_a_call_does_not_cancel_a_joined_encoding() -> None:
    async def call() -> str:
        encoder.released = asyncio.Event()
        cache = encoder.behind()
        first = asyncio.ensure_future(cache.get("1", PIXELS))
        second = asyncio.ensure_future(outcome(cache, "1"))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        encoder.released.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    encoder = Encoder()
    assert run(call()) == "joined"
    assert encoder.num_encoded == 1


def test_encodings_of_cancelled_calls_count_against_the_limit() -> None:
    async def call() -> str:
        encoder.released = asyncio.Event()
        cache = encoder.behind()
        for value in range(MAX_ENCODING):
            caller = asyncio.ensure_future(cache.get(str(value), PIXELS))
            await asyncio.sleep(0)
            caller.cancel()
        refused = await cache.get("9", PIXELS)
        assert isinstance(refused, Failed)
        message = "3 images are queued for encoding, the maximum; retry later"
        assert (refused.code, refused.message) == ("overloaded", message)
        joined = asyncio.ensure_future(outcome(cache, "0"))
        await asyncio.sleep(0)
        encoder.released.set()
        assert await joined == "joined"
        return await outcome(cache, "9")

    encoder = Encoder()
    assert run(call()) == "miss"


@pytest.mark.parametrize(
    ("max_bytes", "keys", "outcomes"),
    [
        (2 * NUM_BYTES, "121312", "mmhmhm"),  # the least recently used is evicted first
        (0, "11", "mm"),
        (NUM_BYTES - 1, "11", "mm"),  # too large alone
    ],
)
def test_the_cache_is_bounded_in_bytes(max_bytes: int, keys: str, outcomes: str) -> None:
    async def call() -> str:
        cache = Encoder().behind(max_bytes)
        return "".join([(await outcome(cache, key))[0] for key in keys])

    assert run(call()) == outcomes


def test_features_in_use_outlive_their_eviction() -> None:
    async def call() -> None:
        cache = Encoder().behind(NUM_BYTES)
        held = await cache.get("1", PIXELS)
        await cache.get("2", PIXELS)
        assert await cache.get("1", None) is None
        assert isinstance(held, CachedFeatures)
        assert held.tensor.sum() == sum(range(NUM_BYTES // 4))

    run(call())


def test_outcomes_and_bytes_are_counted() -> None:
    async def call() -> None:
        cache = Encoder().behind(NUM_BYTES, "counted")
        for key in "112":
            await cache.get(key, PIXELS)

    run(call())
    requests = "diptych_vision_cache_requests_total"
    assert REGISTRY.get_sample_value(requests, {"model": "counted", "outcome": "miss"}) == 2
    assert REGISTRY.get_sample_value(requests, {"model": "counted", "outcome": "hit"}) == 1
    assert (
        REGISTRY.get_sample_value("diptych_vision_cache_bytes", {"model": "counted"}) == NUM_BYTES
    )
    assert (
        REGISTRY.get_sample_value("diptych_queue_depth", {"model": "counted", "stage": "encode"})
        == 0
    )
