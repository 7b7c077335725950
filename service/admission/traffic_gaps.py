"""The gaps of online traffic, in which background requests run.

    online       a request of a client that waits for its answer
    background   a request of a batch: starts in a gap, cancelled when an online request arrives

A gap begins when no online request has been in flight for a moment. In it one background request
starts, and one more at a time for each that ends, so that the many short gaps of busy traffic cost
little work that is cancelled. Traffic without gaps leaves background requests a small share of the
time: one runs and is not cancelled, then none does for `_REST_FACTOR` times as long. So fewer than
one in twenty online requests meets one, and a batch makes progress.

All models count together, as they may share cores or a GPU. It knows no models and no batches.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_QUIET_S = 0.05  # a client that asks one request after the other leaves shorter pauses
_REST_FACTOR = 50
MAX_RUNNING = 8


@dataclass(frozen=True, slots=True)
class _Running:
    start_s: float
    is_cancellable: bool


class TrafficGaps:
    """Counts online requests, and runs background requests between them."""

    def __init__(
        self, max_running: int = MAX_RUNNING, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_running = max_running
        self._now = now
        self._num_online = 0
        self._quiet_since_s = -math.inf
        self._allowed = 1  # background requests at a time in this gap
        self._rested_at_s = -math.inf  # earliest time for a request amid traffic
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._changed = asyncio.Event()

    def begin_online(self) -> None:
        """Count an online request until `end_online`; cancel the gap's background requests."""
        self._num_online += 1
        self._allowed = 1
        for task, running in self._running.items():
            if running.is_cancellable:
                task.cancel()
        self._changed.set()

    def end_online(self) -> None:
        self._num_online -= 1
        self._quiet_since_s = self._now()
        self._changed.set()

    async def wait(self) -> None:
        """Return when a background request may start."""
        while (wait_s := self._wait_s()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background request, after `wait`; cancel its task if an online request comes."""

        def note_end(task: asyncio.Task[None]) -> None:
            duration_s = self._now() - self._running.pop(task).start_s
            if not task.cancelled():
                self._allowed = min(self._allowed + 1, self._max_running)
            # Cancelled ones do not count: where all gaps are shorter than a request, only the turns
            # amid traffic complete.
            if not task.cancelled() or self._rested_at_s == -math.inf:
                self._rested_at_s = self._now() + duration_s * _REST_FACTOR
            self._changed.set()

        task = asyncio.ensure_future(work)
        self._running[task] = _Running(self._now(), is_cancellable=not self._num_online)
        task.add_done_callback(note_end)
        return task

    def _wait_s(self) -> float:
        """Return the seconds until a background request may start; infinite: unknown."""
        if self._num_online:
            return math.inf if self._running else self._rested_at_s - self._now()
        if len(self._running) >= self._allowed:
            return math.inf
        return self._quiet_since_s + _QUIET_S - self._now()
