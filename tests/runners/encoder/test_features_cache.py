"""The features cache: hits, joined encodings, failures, cancellation and its size in bytes."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from runners.encoder.features_cache import CachedFeatures, Encoding, VisionCache
from wire.runner_messages import EncodedImage, Failed

NUM_BYTES = 40  # features of one image
MAX_ENCODING = 3
PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)
FEATURES = torch.arange(NUM_BYTES // 4, dtype=torch.float32)[None]


@dataclass(slots=True)
class Encoder:
    """Counts the images that it encodes; waits for `released`, if set."""

    released: asyncio.Event | None = None
    failure: Exception | None = None
    failed: Failed | None = None
    encode_s: float = 0.005
    keys: list[str] = field(default_factory=list)
    num_places: int = MAX_ENCODING
    cache: VisionCache | None = None
    places: list[int] = field(default_factory=list)  # of staged images
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def cached(
        self, max_bytes: int = 1000, model_id: str = "a", max_encoding: int = MAX_ENCODING
    ) -> VisionCache:
        limits = max_bytes, max_encoding, self.num_places
        self.cache = VisionCache(model_id, *limits, self.encode, self.stage)
        return self.cache

    def stage(self, encoding: Encoding) -> "Future[int]":
        self.places.append(encoding.place)
        return Future()

    async def encode(self, place: int) -> EncodedImage:
        """Encode an image in its turn, one at a time."""
        assert self.cache is not None
        async with self.turn:
            encoding = self.cache.take(place)
            assert encoding is not None
            assert encoding.staged is not None
            assert encoding.place == place
            self.keys.append(encoding.image_key)
            if self.released is not None:
                await self.released.wait()
        if self.failure is not None:
            raise self.failure
        if self.failed is None:
            encoding.features = FEATURES.clone()
            encoding.embedding = f"of {encoding.image_key}"
        return EncodedImage(encode_s=self.encode_s, failed=self.failed)


async def outcome(cache: VisionCache, key: str) -> str:
    cached = await cache.get(key, PIXELS)
    assert isinstance(cached, CachedFeatures)
    return cached.source.outcome


async def begun(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Return calls that all wait."""
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.01)
    return tasks


async def test_the_second_call_is_a_hit_that_needs_no_pixels() -> None:
    encoder = Encoder()
    cache = encoder.cached()
    assert await cache.get("1", None) is None
    first: Any = await cache.get("1", PIXELS)
    second: Any = await cache.get("1", None)
    assert (first.source.outcome, second.source.outcome) == ("miss", "hit")
    assert second.tensor is first.tensor
    assert first.source.embedding == second.source.embedding == "of 1"
    assert torch.equal(first.tensor, FEATURES)
    assert (second.source.encode_s, second.source.queue_s) == (0.0, 0.0)
    assert len(encoder.keys) == 1


@pytest.mark.parametrize("encode_s", [0.005, 60.0], ids=["shorter", "longer than the call"])
async def test_concurrent_calls_join_one_encoding(encode_s: float) -> None:
    released = asyncio.Event()
    encoder = Encoder(released, encode_s=encode_s)
    cache = encoder.cached()
    waiting = await begun(cache.get("1", PIXELS), *(cache.get("1", None) for _ in range(4)))
    released.set()
    miss, *joined = [(await call).source for call in waiting]
    assert [miss.outcome, *(source.outcome for source in joined)] == ["miss", *["joined"] * 4]
    assert {source.embedding for source in (miss, *joined)} == {"of 1"}
    assert len(encoder.keys) == 1
    assert (miss.encode_s, joined[0].encode_s) == (encode_s, 0.0)
    assert all(0 < source.queue_s < 60 for source in joined)
    assert (miss.queue_s > 0) == (encode_s < 60)
    assert miss.queue_s >= 0


@pytest.mark.parametrize(
    "failing",
    [{"failed": Failed(code="internal", message="broken")}, {"failure": ValueError("broken")}],
    ids=["of the image", "of the batcher"],
)
async def test_a_failure_reaches_joined_calls_and_is_not_cached(failing: dict[str, Any]) -> None:
    released = asyncio.Event()
    encoder = Encoder(released, **failing)
    cache = encoder.cached()
    waiting = await begun(*(cache.get("1", PIXELS) for _ in range(3)))
    released.set()
    for call in waiting:
        assert isinstance(await call, Failed)
    encoder.failed = encoder.failure = None
    assert await outcome(cache, "1") == "miss"


async def test_cancelled_calls_leave_their_encodings() -> None:
    released = asyncio.Event()
    encoder = Encoder(released)
    cache = encoder.cached()
    for caller in await begun(*(cache.get(str(key), PIXELS) for key in range(MAX_ENCODING))):
        caller.cancel()
    refused = await cache.get("9", PIXELS)  # they count against the limit
    message = "3 images are queued for encoding, the maximum; retry later"
    assert refused == Failed(code="overloaded", message=message)
    (joined,) = await begun(outcome(cache, "0"))
    released.set()
    assert await joined == "joined"
    assert await outcome(cache, "9") == "miss"
    assert len(encoder.keys) == 4


@pytest.mark.parametrize(
    ("max_bytes", "keys", "outcomes"),
    [
        (2 * NUM_BYTES, "121312", "mmhmhm"),  # the least recently used is evicted first
        (0, "11", "mm"),
        (NUM_BYTES - 1, "11", "mm"),  # too large alone
    ],
)
async def test_the_cache_is_bounded_in_bytes(max_bytes: int, keys: str, outcomes: str) -> None:
    cache = Encoder().cached(max_bytes)
    for key, expected in zip(keys, outcomes, strict=True):
        assert (await outcome(cache, key))[0] == expected


async def test_outcomes_and_bytes_are_counted() -> None:
    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"diptych_{name}", {"model": "counted", **labels})

    cache = Encoder().cached(NUM_BYTES, "counted")
    for key in "112":
        await cache.get(key, PIXELS)
    assert value("vision_cache_requests_total", outcome="miss") == 2
    assert value("vision_cache_requests_total", outcome="hit") == 1
    assert value("vision_cache_bytes") == NUM_BYTES
    assert value("queue_depth", stage="encode") == 0


@pytest.mark.parametrize("failure", [None, ValueError("broken")])
async def test_clients_alternate_in_the_batcher(failure: Exception | None) -> None:
    released = asyncio.Event()
    encoder = Encoder(released, failure, num_places=1)
    cache = encoder.cached()
    for suffix in "ab":  # a place is returned
        calls = []
        for key, client in (("1", "heavy"), ("2", "heavy"), ("3", "light")):
            calls.append(cache.get(key + suffix, PIXELS, None, client))
        tasks = await begun(*calls)
        assert encoder.keys == [f"1{suffix}"]
        released.set()
        await asyncio.gather(*tasks)
        assert encoder.keys == [f"1{suffix}", f"3{suffix}", f"2{suffix}"]
        encoder.keys.clear()
        released.clear()


async def test_images_in_the_batcher_have_places_of_their_own() -> None:
    released = asyncio.Event()
    encoder = Encoder(released, num_places=2)
    cache = encoder.cached()
    for suffix in "ab":  # places are returned
        tasks = await begun(*(cache.get(key + suffix, PIXELS) for key in "123"))
        assert sorted(encoder.places) == [0, 1]  # the third image is not staged before its turn
        released.set()
        await asyncio.gather(*tasks)
        assert encoder.places.pop() in (0, 1)
        encoder.places.clear()
        released.clear()


async def test_places_are_used_again() -> None:
    released = asyncio.Event()
    encoder = Encoder(released, num_places=2)
    cache = encoder.cached()
    for suffix in "ab":  # the second image begins as the first one ends, while a place is free
        tasks = await begun(cache.get(f"1{suffix}", PIXELS))
        tasks.append(asyncio.create_task(cache.get(f"2{suffix}", PIXELS)))
        released.set()
        await asyncio.gather(*tasks)
        released.clear()
    tasks = await begun(cache.get("3", PIXELS), cache.get("4", PIXELS))
    assert sorted(encoder.places[-2:]) == [0, 1]
    released.set()
    await asyncio.gather(*tasks)


async def test_images_of_others_are_before_the_next_of_a_client() -> None:
    released = asyncio.Event()
    encoder = Encoder(released, num_places=4)
    cache = encoder.cached(max_encoding=20)
    heavy = [f"heavy {number}" for number in range(8)]
    others = [f"other {number}" for number in range(4)]
    tasks = await begun(*(cache.get(key, PIXELS, None, "heavy") for key in heavy))
    assert encoder.keys == heavy[:1]
    tasks += await begun(*(cache.get(key, PIXELS, None, key) for key in others))
    released.set()
    await asyncio.gather(*tasks)
    assert encoder.keys == [heavy[0], *others, *heavy[1:]]


async def test_image_whose_batch_has_begun_keeps_its_place() -> None:
    released = asyncio.Event()
    encoder = Encoder(released, num_places=3)
    cache = encoder.cached(max_encoding=20)
    heavy = await begun(*(cache.get(f"heavy {n}", PIXELS, None, "heavy") for n in range(5)))
    for place in range(3):
        cache.take(place)
    light = await begun(cache.get("light", PIXELS, None, "light"))
    assert cache.encodings["light"].place == -1
    released.set()
    await asyncio.gather(*heavy, *light)
    assert encoder.keys.index("light") == 3  # the first place that becomes free


async def test_client_keeps_what_is_its_share() -> None:
    encoder = Encoder(asyncio.Event(), num_places=3)
    cache = encoder.cached(max_encoding=20)
    calls = [cache.get(f"{client}{n}", PIXELS, None, client) for client in "abc" for n in range(3)]
    tasks = await begun(*calls)
    placed = [key for key, encoding in cache.encodings.items() if encoding.place >= 0]
    assert sorted(key[0] for key in placed) == ["a", "b", "c"]
    for task in tasks:
        task.cancel()
