"""Image features by the content of the pixels that made them, least recently used out.

Requests for one image at one time encode it once: the first makes the features, the others join it. What fails is told
to all who joined and is not kept. It knows nothing of encoders; features are something that takes bytes of memory,
and are freed when neither the cache nor a request refers to them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from runners.messages import Array
from runners.recently_used import RecentlyUsed
from service.errors import Overloaded
from service.metrics import VISION_CACHE_BYTES, VISION_CACHE_REQUESTS
from service.shared_memory import Block

CacheOutcome = Literal["hit", "miss", "joined"]
Features = Array | Block  # with their bytes, or in the memory that runners reach


@dataclass(frozen=True, slots=True)
class EncodedFeatures:
    """Image features and what they took."""

    image_features: Features
    encode_s: float
    queue_s: float  # waiting for the batch, and transport
    outcome: CacheOutcome = "miss"


@dataclass(frozen=True, slots=True)
class FeaturesKey:
    """What decides image features: the model as it was exported, and the pixels that enter its encoder."""

    model_id: str
    build_key: str
    pixels: bytes  # hash

    @classmethod
    def of(cls, model_id: str, build_key: str, pixels: NDArray[np.uint8]) -> "FeaturesKey":
        """Return the key of `pixels` (H, W, 3).

        BLAKE3 takes 0.2 ms for 768 x 768 where hashlib's fastest, SHA-256, takes 0.9 and BLAKE2 2: less than a thread.
        """
        return cls(model_id, build_key, blake3(pixels.data).digest())


class VisionCache:
    """Features of several models, together at most `max_bytes`, of which `max_encoding` are made at one time."""

    def __init__(self, max_bytes: int, max_encoding: int) -> None:
        self._max_encoding = max_encoding
        self._features = RecentlyUsed[FeaturesKey, Features](max_bytes)
        self._encoding: dict[FeaturesKey, asyncio.Task[EncodedFeatures]] = {}

    async def get(self, key: FeaturesKey, encode: Callable[[], Awaitable[EncodedFeatures]]) -> EncodedFeatures:
        """Return the features of `key`, from memory or by `encode`; raise what that raises.

        A caller that is cancelled leaves the encoding to those that joined it, and to the cache. It still counts, lest
        those who come and go fill the encoders: raise `Overloaded` where too many are being made.
        """
        if (features := self._features.get(key)) is not None:
            return self._counted(key, EncodedFeatures(features, 0.0, 0.0, "hit"))
        task = self._encoding.get(key)
        if task is not None:
            return self._counted(key, await _joined(task))
        if len(self._encoding) >= self._max_encoding:
            raise Overloaded(f"{len(self._encoding)} images are being encoded, the most that are allowed; try later")
        task = self._encoding[key] = asyncio.ensure_future(self._encode(key, encode))
        task.add_done_callback(_note_failure)
        return self._counted(key, await asyncio.shield(task))

    async def _encode(self, key: FeaturesKey, encode: Callable[[], Awaitable[EncodedFeatures]]) -> EncodedFeatures:
        try:
            encoded = await encode()
        finally:
            del self._encoding[key]
        self._keep(key, encoded.image_features)
        return encoded

    def _keep(self, key: FeaturesKey, features: Features) -> None:
        VISION_CACHE_BYTES.labels(key.model_id).inc(features.num_bytes)
        for gone, dropped in self._features.keep(key, features):
            VISION_CACHE_BYTES.labels(gone.model_id).dec(dropped.num_bytes)

    @staticmethod
    def _counted(key: FeaturesKey, encoded: EncodedFeatures) -> EncodedFeatures:
        VISION_CACHE_REQUESTS.labels(key.model_id, encoded.outcome).inc()
        return encoded


def _note_failure(task: "asyncio.Task[EncodedFeatures]") -> None:
    """Take a failure that nobody may be left to be told of, lest asyncio warns."""
    if not task.cancelled():
        task.exception()


async def _joined(task: "asyncio.Task[EncodedFeatures]") -> EncodedFeatures:
    """Wait for another request's encoding; the wait is this one's queue."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    encoded = await asyncio.shield(task)
    return replace(encoded, encode_s=0.0, queue_s=loop.time() - start_s, outcome="joined")
