"""Image features that an encoder keeps for gateways on other hosts, by the content of the pixels that made them.

Each gateway has a cache of its own; but an image's hash leads all of them to one encoder, so that it is encoded once.
What came through memory is not kept: the gateway of that memory keeps it (service/vision_cache.py).
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from blake3 import blake3

from runners.messages import Array, EncodedImage, EncodeOutcome, ImageToEncode
from runners.metrics import ENCODER_CACHE_REQUESTS


class FeatureCache:
    """The features of one model, at most `max_bytes`, least recently used out."""

    def __init__(self, model_id: str, max_bytes: int) -> None:
        self._model_id = model_id
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._features: OrderedDict[bytes, Array] = OrderedDict()  # least recently used first

    async def outcome(
        self, image: ImageToEncode, encode: Callable[[ImageToEncode], Awaitable[EncodeOutcome]]
    ) -> EncodeOutcome:
        """Return what is kept of an image, or what `encode` makes of it."""
        if not isinstance(image.pixels, Array) or not self._max_bytes:
            return await encode(image)
        key = blake3(f"{image.pixels.shape}".encode() + image.pixels.data).digest()
        if (kept := self._features.get(key)) is not None:
            self._features.move_to_end(key)
            self._count("hit")
            return EncodedImage(image_features=kept, encode_s=0.0)
        self._count("miss")
        outcome = await encode(image)
        if isinstance(outcome, EncodedImage) and isinstance(outcome.image_features, Array):
            self._keep(key, outcome.image_features)
        return outcome

    def _keep(self, key: bytes, features: Array) -> None:
        """Keep features and drop the least recently used until they fit."""
        if key in self._features:  # two encoded it at one time
            return
        self._features[key] = features
        self._num_bytes += features.num_bytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self._num_bytes -= dropped.num_bytes

    def _count(self, outcome: str) -> None:
        ENCODER_CACHE_REQUESTS.labels(self._model_id, outcome).inc()
