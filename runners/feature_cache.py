"""Image features that an encoder keeps for gateways on other hosts, by the content of the pixels that made them.

Each gateway has a cache of its own; but an image's hash leads all of them to one encoder, so that it is encoded once.
What came through memory is not kept: the gateway of that memory keeps it (service/vision_cache.py).
"""

from collections.abc import Awaitable, Callable

from blake3 import blake3

from runners.messages import Array, EncodedImage, EncodeOutcome, ImageToEncode
from runners.metrics import ENCODER_CACHE_REQUESTS
from runners.recently_used import RecentlyUsed


class FeatureCache:
    """The features of one model, at most `max_bytes`, least recently used out."""

    def __init__(self, model_id: str, max_bytes: int) -> None:
        self._model_id = model_id
        self._max_bytes = max_bytes
        self._features = RecentlyUsed[bytes, Array](max_bytes)

    async def outcome(
        self, image: ImageToEncode, encode: Callable[[ImageToEncode], Awaitable[EncodeOutcome]]
    ) -> EncodeOutcome:
        """Return what is kept of an image, or what `encode` makes of it."""
        if not isinstance(image.pixels, Array) or not self._max_bytes:
            return await encode(image)
        key = blake3(f"{image.pixels.shape}".encode() + image.pixels.data).digest()
        if (kept := self._features.get(key)) is not None:
            self._count("hit")
            return EncodedImage(image_features=kept, encode_s=0.0)
        self._count("miss")
        outcome = await encode(image)
        features = outcome.image_features if isinstance(outcome, EncodedImage) else None
        if isinstance(features, Array) and self._features.get(key) is None:  # two may have encoded it at one time
            self._features.keep(key, features)
        return outcome

    def _count(self, outcome: str) -> None:
        ENCODER_CACHE_REQUESTS.labels(self._model_id, outcome).inc()
