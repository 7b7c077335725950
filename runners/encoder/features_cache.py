"""An LRU cache of image features by image key, and the encodings in progress.

Concurrent calls for a new image encode it once: the first is a miss, the others join its encoding.
A failure reaches all of them and is not cached. Calls hold references to their features, so that
eviction does not affect them. Knows no encoder, only tensors with a size in bytes.

The batcher is first in, first out. So places go through it, not images: as many as keep it full.
A batch encodes the images that are in its places when it begins. A free place goes to the client
with the fewest images in the batcher. Without one, an image takes the place of one that no batch
has taken, of the client with the most: a client's images wait behind another's first.
"""

import asyncio
import logging
import threading
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
    image_key: str = ""
    place: int = -1  # in the batcher
    is_started: bool = False  # a batch has taken it
    staged: "Future[int] | None" = None  # ends when the copy of `pixels` to a GPU is launched
    started_s: float = field(default_factory=time.monotonic)
    trace: Context = field(default_factory=get_current)
    features: Tensor | None = None  # (N, C)
    embedding: str = ""  # as in `FoundFeatures`
    done: "asyncio.Future[EncodedImage] | None" = None


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """The features (N, C) of a call's image, and their source."""

    tensor: Tensor
    source: FoundFeatures


class VisionCache:
    """The features of one model, up to `max_bytes`.

    `encode` passes a place through the batcher; the encoder takes the image that is in it. `stage`
    starts to copy its pixels to a GPU.
    """

    def __init__(
        self,
        model_id: str,
        max_bytes: int,
        max_encoding: int,
        max_in_batcher: int,
        encode: Callable[[int], Awaitable[EncodedImage]],
        stage: "Callable[[Encoding], Future[int] | None]",
    ) -> None:
        self.encodings: dict[str, Encoding] = {}
        self._model_id = model_id
        self._max_encoding = max_encoding
        self._places = list(range(max_in_batcher))  # the free ones
        self._in_batcher: dict[int, Encoding] = {}  # by place, in the order of the batcher
        self._lock = threading.Lock()  # of the places and their images: see `take`
        self._tasks: set[asyncio.Task[None]] = set()
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
            encoding = Encoding(pixels, adapter, client, image_key)
            encoding.done = asyncio.get_running_loop().create_future()
            self.encodings[image_key] = encoding
            self._depth.inc()
            self._enter()
        start_s = time.monotonic()
        assert encoding.done is not None
        encoded = await asyncio.shield(encoding.done)
        if encoding.features is None:
            return encoded.failed or _FAILED
        encode_s = encoded.encode_s if outcome == "miss" else 0.0
        queue_s = max(0.0, time.monotonic() - start_s - encode_s)
        VISION_CACHE_REQUESTS.labels(self._model_id, outcome).inc()
        source = FoundFeatures(
            outcome=outcome, encode_s=encode_s, queue_s=queue_s, embedding=encoding.embedding
        )
        return CachedFeatures(encoding.features, source)

    def take(self, place: int) -> Encoding | None:
        """Return the image of a place, whose batch begins, to the thread of the encoder."""
        with self._lock:
            encoding = self._in_batcher.get(place)
            if encoding is not None:
                encoding.is_started = True
            return encoding

    def _enter(self) -> None:
        """Give a waiting image a free place, or that of a client with more than one more."""
        with self._lock:
            counts = self._counts()
            encoding = self._next(counts)
            assert encoding is not None
            if self._places:
                place = self._places.pop()
                self._put(encoding, place)
                task = asyncio.create_task(self._run(place))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
            most = counts[encoding.client] + 2
            displaced: Encoding | None = None
            for other in self._in_batcher.values():
                if not other.is_started and counts[other.client] >= most:
                    displaced = other  # of those of a client, the first to be encoded
                    most = counts[other.client] + 1
            if displaced is not None:
                self._put(encoding, displaced.place)
                displaced.place = -1
                displaced.staged = None

    def _counts(self) -> Counter[str]:
        return Counter(encoding.client for encoding in self._in_batcher.values())

    def _next(self, counts: Counter[str]) -> Encoding | None:
        """Return the first waiting image of the client with the fewest in the batcher."""
        waiting = [encoding for encoding in self.encodings.values() if encoding.place < 0]
        return min(waiting, key=lambda encoding: counts[encoding.client], default=None)

    def _put(self, encoding: Encoding, place: int) -> None:
        encoding.place = place
        self._in_batcher[place] = encoding
        encoding.staged = self._stage(encoding)

    async def _run(self, place: int) -> None:
        """Pass the images of a place through the batcher, until none waits for it."""
        encoding: Encoding | None = self._in_batcher[place]
        while encoding is not None:
            try:
                encoded = await self._encode(place)
            except Exception:  # raised by the batcher; failures of the encoder are outcomes
                logger.exception("the batcher failed for an image of %s", self._model_id)
                encoded = EncodedImage(encode_s=0.0, failed=_FAILED)
            with self._lock:
                counts = self._counts()  # with this one: others are before its client's next
                self._end(self._in_batcher.pop(place), encoded)
                encoding = self._next(counts)
                if encoding is None:
                    self._places.append(place)
                else:
                    self._put(encoding, place)

    def _end(self, encoding: Encoding, encoded: EncodedImage) -> None:
        del self.encodings[encoding.image_key]
        self._depth.dec()
        features = encoding.features
        if features is not None and features.nbytes <= self._features.maxsize:
            source = FoundFeatures(outcome="hit", embedding=encoding.embedding)
            self._features[encoding.image_key] = CachedFeatures(features, source)
            self._bytes.set(self._features.currsize)
        assert encoding.done is not None
        encoding.done.set_result(encoded)
