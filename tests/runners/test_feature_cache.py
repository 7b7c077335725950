import asyncio

import numpy as np
import pytest
from prometheus_client import REGISTRY

from runners.feature_cache import FeatureCache
from runners.messages import Array, EncodedImage, EncodeOutcome, Failed, ImageToEncode, MemoryAddress, SharedArray

FEATURES_BYTES = 16
SHARED = SharedArray(memory=MemoryAddress(pid=1, fd=1, name="m"), offset=0, dtype="uint8", shape=(2, 2, 3))


def image(seed: int, shape: tuple[int, ...] = (2, 2, 3)) -> ImageToEncode:
    return ImageToEncode(pixels=Array.of(np.full(shape, seed, dtype=np.uint8)))


class Encoder:
    """Features that say which image was encoded."""

    def __init__(self, failed: Failed | None = None) -> None:
        self.num_encoded = 0
        self.failed = failed

    async def __call__(self, image: ImageToEncode) -> EncodeOutcome:
        self.num_encoded += 1
        if self.failed is not None:
            return self.failed
        first = image.pixels.data[0] if isinstance(image.pixels, Array) else 0
        return EncodedImage(image_features=Array.of(np.full((4, 1), first, dtype=np.float32)), encode_s=0.5)


def outcomes(cache: FeatureCache, encoder: Encoder, *images: ImageToEncode) -> list[EncodeOutcome]:
    async def ask() -> list[EncodeOutcome]:
        return [await cache.outcome(each, encoder) for each in images]

    return asyncio.run(ask())


def values(outcome: EncodeOutcome) -> list[float]:
    assert isinstance(outcome, EncodedImage)
    assert isinstance(outcome.image_features, Array)
    return [float(value) for value in outcome.image_features.numpy().reshape(-1)]


def test_an_image_that_comes_again_is_not_encoded_again() -> None:
    encoder = Encoder()
    first, other, again = outcomes(FeatureCache("m", 100), encoder, image(1), image(2), image(1))
    assert encoder.num_encoded == 2
    assert values(again) == values(first) == [1.0] * 4
    assert values(other) == [2.0] * 4
    assert isinstance(again, EncodedImage)
    assert again.encode_s == 0


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    encoder = Encoder()
    outcomes(FeatureCache("m", 100), encoder, image(1), image(1, (4, 1, 3)))
    assert encoder.num_encoded == 2


@pytest.mark.parametrize(
    ("max_bytes", "asked", "num_encoded"),
    [
        (0, [1, 1], 2),
        (FEATURES_BYTES - 1, [1, 1], 2),
        (FEATURES_BYTES, [1, 1, 2, 1], 3),
        (2 * FEATURES_BYTES, [1, 2, 1, 3, 1, 2], 4),  # 2 was used longest ago when 3 came
    ],
)
def test_the_least_recently_used_go_first_where_room_ends(max_bytes: int, asked: list[int], num_encoded: int) -> None:
    encoder = Encoder()
    outcomes(FeatureCache("m", max_bytes), encoder, *map(image, asked))
    assert encoder.num_encoded == num_encoded


def test_what_came_through_memory_or_failed_is_not_kept() -> None:
    failing, encoder = Encoder(Failed(code="internal", message="no")), Encoder()
    cache = FeatureCache("m", 100)
    outcomes(cache, failing, image(1), image(1))
    outcomes(cache, encoder, ImageToEncode(pixels=SHARED), ImageToEncode(pixels=SHARED))
    assert (failing.num_encoded, encoder.num_encoded) == (2, 2)


def test_hits_and_misses_are_counted() -> None:
    outcomes(FeatureCache("counted", 100), Encoder(), image(1), image(1), image(1))
    name = "diptych_encoder_cache_requests_total"
    counts = [REGISTRY.get_sample_value(name, {"model": "counted", "outcome": each}) for each in ("hit", "miss")]
    assert counts == [2, 1]
