"""The places of requests: each counts from before its body is read until its answer is made.

A place counts one request for all limits at once: the requests of the service and their memory, in
fair shares of its clients; the concurrent requests of its key; the traffic that batches give way
to; and the drain before a stop. Knows no models and no batches.
"""

import asyncio
import math
import re
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from service.admission.api_keys import UNLIMITED, Quota
from service.admission.fair_queue import FairShare
from service.errors import NotReady
from service.telemetry.metrics import REQUEST_MEMORY_BYTES

_QUIET_S = 0.05  # a client that asks one request after the other leaves shorter pauses
_REST_FACTOR = 50
_MAX_RUNNING = 8
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # safe in logs and headers


def is_valid_request_id(text: str) -> bool:
    return _REQUEST_ID.fullmatch(text) is not None


def request_id_or_new(text: str | None) -> str:
    return text if text and is_valid_request_id(text) else uuid.uuid4().hex


@dataclass(slots=True)
class Place:
    """The place of a request, and the memory that belongs to it."""

    is_taken: bool = False
    num_bytes: int = 0  # its body, an image by URL, and values parsed from them
    # its key's lease in the store of the shared limits; None without a limit of concurrent requests
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Everything about a request except its fields and image."""

    request_id: str
    api: str  # the interface, as in metrics
    deadline_s: float  # time.monotonic()
    quota: Quota = UNLIMITED  # names the client in the fair queue and shares
    place: Place = field(default_factory=Place)
    # False: it runs in the gaps of the others, or in a place that its caller has taken
    needs_place: bool = True


@dataclass(frozen=True, slots=True)
class _Running:
    start_s: float
    is_cancellable: bool


class TrafficGaps:
    """Counts online requests, and runs background requests between them.

        online       a request of a client that waits for its answer
        background   a request of a batch: starts in a gap, cancelled when an online request arrives

    A gap begins when no online request has been in flight for a moment. In it one background
    request starts, and one more at a time for each that ends, so that the many short gaps of busy
    traffic cost little work that is cancelled. Traffic without gaps leaves background requests a
    small share of the time: one runs and is not cancelled, then none does for `_REST_FACTOR` times
    as long. So fewer than one in twenty online requests meets one, and a batch makes progress. All
    models count together, as they may share cores or a GPU.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._num_online = 0
        self._quiet_since_s = -math.inf
        self._allowed = 1  # background requests at a time in this gap
        self._rested_at_s = -math.inf  # earliest time for a request amid traffic
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._changed = asyncio.Event()

    def begin_online(self) -> None:
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
                self._allowed = min(self._allowed + 1, _MAX_RUNNING)
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


class Places:
    """All requests in flight or queued, and their memory."""

    def __init__(
        self,
        max_pending: int,
        max_bytes: int,
        max_bytes_of_client: int,
        gaps: TrafficGaps | None = None,
    ) -> None:
        self.is_closed = False
        self._pending = FairShare(max_pending)
        self._memory = FairShare(max_bytes, max_bytes_of_client)
        self._gaps = gaps
        self._left = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        return self._memory.total

    def check_open(self) -> None:
        """Raise `NotReady` once `close` was called."""
        if self.is_closed:
            hint = "retry on another replica, or here in a minute"
            raise NotReady(f"the service is shutting down; {hint}")

    async def close(self) -> None:
        """Admit no more requests, and return when none has a place."""
        self.is_closed = True
        while self._pending.total:
            self._left.clear()
            await self._left.wait()

    async def take(self, context: RequestContext) -> None:
        """Count a request, before its body is read, until `leave`; raise `Overloaded`."""
        if context.place.is_taken or not context.needs_place:
            return
        quota = context.quota
        self._pending.take(quota.name, 1, "requests in flight or queued")
        if quota.max_concurrent is not None:
            try:
                timeout_s = context.deadline_s - time.monotonic()
                context.place.lease = await quota.begin_request(timeout_s)
            except BaseException:
                self._pending.remove(quota.name, 1)
                self._left.set()
                raise
        if self._gaps is not None:
            self._gaps.begin_online()
        context.place.is_taken = True

    def hold(self, context: RequestContext, num_bytes: int) -> None:
        """Count memory of a request, before it is used, until `leave`; raise `Overloaded`."""
        self._memory.take(context.quota.name, num_bytes, "bytes of requests in memory")
        context.place.num_bytes += num_bytes
        REQUEST_MEMORY_BYTES.set(self._memory.total)

    async def leave(self, context: RequestContext) -> None:
        place = context.place
        if place.num_bytes > 0:
            self._memory.remove(context.quota.name, place.num_bytes)
            place.num_bytes = 0
            REQUEST_MEMORY_BYTES.set(self._memory.total)
        if place.is_taken:
            place.is_taken = False
            if self._gaps is not None:
                self._gaps.end_online()
            self._pending.remove(context.quota.name, 1)
            self._left.set()
            if place.lease is not None:
                await context.quota.end_request(place.lease)
