"""Images of many requests in batches for one encoder: what waits when it is free goes in, at once.

BentoML's adaptive batcher (1.4.40) holds a request back for about as long as earlier ones have waited, and polls: after
a burst a lone request waits for nobody. An encoder on a CPU gains little from a batch, and loses nothing this way:
while one batch runs, the next one gathers. It knows neither messages nor encoders.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

ImageT = TypeVar("ImageT")
OutcomeT = TypeVar("OutcomeT")


class WaitingImages(Generic[ImageT, OutcomeT]):
    """The images that wait, and the thread that encodes them, at most `max_batch_size` at a time.

    `encode` returns an outcome for each image of a batch. Where it raises for several, each is tried alone, so that the
    error reaches only those that cause it.
    """

    def __init__(self, encode: Callable[[Sequence[ImageT]], Sequence[OutcomeT]], max_batch_size: int) -> None:
        self._encode = encode
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[ImageT, asyncio.Future[OutcomeT]]] = deque()
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._running: asyncio.Task[None] | None = None

    async def outcome(self, image: ImageT) -> OutcomeT:
        """Return the outcome of `image`, or raise what `encode` raised; a caller that is cancelled leaves the queue."""
        future: asyncio.Future[OutcomeT] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next():
            await self._settle(batch)
        self._running = None

    def _next(self) -> list[tuple[ImageT, "asyncio.Future[OutcomeT]"]]:
        """Take from the queue, in order, what somebody still waits for."""
        batch: list[tuple[ImageT, asyncio.Future[OutcomeT]]] = []
        while self._waiting and len(batch) < self._max_batch_size:
            image, future = self._waiting.popleft()
            if not future.done():
                batch.append((image, future))
        return batch

    async def _settle(self, batch: Sequence[tuple[ImageT, "asyncio.Future[OutcomeT]"]]) -> None:
        """Encode a batch and tell everyone who still waits."""
        try:
            images = [image for image, _ in batch]
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, images)
        except Exception as error:  # whatever the encoder raised must reach those whose images caused it
            await self._settle_failed(batch, error)
            return
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)

    async def _settle_failed(
        self, batch: Sequence[tuple[ImageT, "asyncio.Future[OutcomeT]"]], error: Exception
    ) -> None:
        if len(batch) > 1:
            logger.warning("a batch of %d images failed, trying each alone: %r", len(batch), error)
            for item in batch:
                await self._settle([item])
        elif not batch[0][1].done():
            batch[0][1].set_exception(error)
