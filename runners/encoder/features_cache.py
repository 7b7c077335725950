"""An LRU cache of image features by image key, and the encodings in progress.

Concurrent calls for a new image encode it once: the first is a miss, the others join its encoding.
A failure reaches all of them and is not cached. Calls hold references to their features, so that
eviction does not affect them. The batcher is first in, first out, so few images are in it, each in
a place, and the next is one of the client with the fewest there. Knows no encoder, only tensors
with a size in bytes.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter

from cachetools import LRUCache
from opentelemetry.context import Context, get_current
from torch import Tensor

from wire.pixels import Pixels
from wire.runner_messages import CacheOutcome, EncodedImage, Failed, FoundFeatures
from wire.telemetry.runner_metrics import QUEUE_DEPTH, VISION_CACHE_BYTES, VISION_CACHE_REQUESTS

logger = logging.getLogger(__name__)

_FAILED = Failed(code="internal", message="the vision encoder failed")


@dataclass(slots=True, eq=False)
class Encoding:
    """An encoding in progress; the encoder sets `features`."""

    pixels: Pixels  # (H, W, 3)
    adapter: str | None  # build key of an adapter with its own encoder, else None
    client: str = ""
    turn: asyncio.Event = field(default_factory=asyncio.Event)  # set while it is in the batcher
    place: int = -1  # in the batcher
    staged: "Future[int] | None" = None  # ends when the copy of `pixels` to a GPU is launched
    started_s: float = field(default_factory=time.monotonic)
    trace: Context = field(default_factory=get_current)
    features: Tensor | None = None  # (N, C)
    embedding: str = ""  # as in `FoundFeatures`
    task: "asyncio.Task[EncodedImage] | None" = None


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """The features (N, C) of a call's image, and their source."""

    tensor: Tensor
    source: FoundFeatures


class VisionCache:
    """The features of one model, up to `max_bytes`.

    `encode` passes an image key through the batcher; the encoder finds the pixels in `encodings`.
    `stage` starts to copy them to a GPU.
    """

    def __init__(
        self,
        model_id: str,
        max_bytes: int,
        max_encoding: int,
        max_in_batcher: int,
        encode: Callable[[str], Awaitable[EncodedImage]],
        stage: "Callable[[Encoding], Future[int]] | None" = None,
    ) -> None:
        self.encodings: dict[str, Encoding] = {}
        self._model_id = model_id
        self._max_encoding = max_encoding
        self._places = list(range(max_in_batcher))  # the free ones
        self._encode = encode
        self._stage = stage
        getsizeof = attrgetter("tensor.nbytes")
        self._features: LRUCache[str, CachedFeatures] = LRUCache(max_bytes, getsizeof=getsizeof)
        self._bytes = VISION_CACHE_BYTES.labels(model_id)
        self._depth = QUEUE_DEPTH.labels(model_id, "encode")

    async def get(
        self, image_key: str, pixels: Pixels | None, adapter: str | None = None, client: str = ""
    ) -> CachedFeatures | Failed | None:
        """Return the features of an image, or None if they are not cached and `pixels` is None;
        `adapter` is one with its own encoder. Cancelling the call does not cancel an encoding.
        """
        if (features := self._features.get(image_key)) is not None:
            VISION_CACHE_REQUESTS.labels(self._model_id, "hit").inc()
            return features
        outcome: CacheOutcome = "joined"
        encoding = self.encodings.get(image_key)
        if encoding is None:
            if pixels is None:
                return None
            if len(self.encodings) >= self._max_encoding:
                queued = f"{len(self.encodings)} images are queued for encoding"
                return Failed(code="overloaded", message=f"{queued}, the maximum; retry later")
            outcome = "miss"
            encoding = self.encodings[image_key] = Encoding(pixels, adapter, client)
            encoding.task = asyncio.create_task(self._run(image_key, encoding))
        start_s = time.monotonic()
        assert encoding.task is not None
        encoded = await asyncio.shield(encoding.task)
        if encoding.features is None:
            return encoded.failed or _FAILED
        encode_s = encoded.encode_s if outcome == "miss" else 0.0
        queue_s = max(0.0, time.monotonic() - start_s - encode_s)
        VISION_CACHE_REQUESTS.labels(self._model_id, outcome).inc()
        source = FoundFeatures(
            outcome=outcome, encode_s=encode_s, queue_s=queue_s, embedding=encoding.embedding
        )
        return CachedFeatures(encoding.features, source)

    async def _run(self, image_key: str, encoding: Encoding) -> EncodedImage:
        try:
            with self._depth.track_inprogress():
                if self._places and not encoding.turn.is_set():  # one that ended may have set it
                    encoding.place = self._places.pop()
                    encoding.turn.set()
                await encoding.turn.wait()
                if self._stage is not None:
                    encoding.staged = self._stage(encoding)
                encoded = await self._encode(image_key)
        except Exception:  # raised by the batcher; failures of the encoder are outcomes
            logger.exception("the batcher failed for an image of %s", self._model_id)
            return EncodedImage(encode_s=0.0, failed=_FAILED)
        finally:
            in_batcher: Counter[str] = Counter()
            waiting: list[Encoding] = []
            for other in self.encodings.values():  # this one, too: others are before its next
                if other.turn.is_set():
                    in_batcher[other.client] += 1
                else:
                    waiting.append(other)
            if waiting:
                following = min(waiting, key=lambda other: in_batcher[other.client])
                following.place = encoding.place
                following.turn.set()
            else:
                self._places.append(encoding.place)
            del self.encodings[image_key]
        features = encoding.features
        if features is not None and features.nbytes <= self._features.maxsize:
            source = FoundFeatures(outcome="hit", embedding=encoding.embedding)
            self._features[image_key] = CachedFeatures(features, source)
            self._bytes.set(self._features.currsize)
        return encoded
