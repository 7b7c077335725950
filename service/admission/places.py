"""The places of requests: each counts from before its body is read until its answer is made.

A place counts one request for all limits at once: the requests of the service and their memory, in
fair shares of its clients; the concurrent requests of its key; and the drain before a stop. It
knows no models.
"""

import asyncio
import re
import uuid
from dataclasses import dataclass, field

from service.admission.api_keys import UNLIMITED, Quota
from service.admission.fair_queue import FairShare
from service.errors import NotReady, Overloaded
from service.telemetry.metrics import REQUEST_MEMORY_BYTES

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # safe in logs and headers


def request_id_or_new(text: str | None) -> str:
    return text if text and _REQUEST_ID.fullmatch(text) else uuid.uuid4().hex


@dataclass(slots=True)
class Place:
    """The place of a request, and the memory that belongs to it."""

    is_taken: bool = False
    num_bytes: int = 0  # its body, an image by URL, and values parsed from them


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Everything about a request except its fields and image."""

    request_id: str
    api: str  # the interface, as in metrics
    deadline_s: float  # time.monotonic()
    quota: Quota = UNLIMITED  # names the client in the fair queue and shares
    place: Place = field(default_factory=Place)
    # False: its caller has taken a place for it, or nothing competes with it
    needs_place: bool = True


class Places:
    """All requests in flight or queued, and their memory."""

    def __init__(self, max_pending: int, max_bytes: int) -> None:
        self.is_closed = False
        self._pending = FairShare(max_pending)
        self._memory = FairShare(max_bytes)
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

    def take(self, context: RequestContext) -> None:
        """Count a request, before its body is read, until `leave`; raise `Overloaded`."""
        if context.place.is_taken or not context.needs_place:
            return
        quota = context.quota
        self._pending.take(quota.name, 1, "requests in flight or queued")
        try:
            quota.begin_request()
        except Overloaded:
            self._pending.remove(quota.name, 1)
            self._left.set()
            raise
        context.place.is_taken = True

    def hold(self, context: RequestContext, num_bytes: int) -> None:
        """Count memory of a request, before it is used, until `leave`; raise `Overloaded`."""
        self._memory.take(context.quota.name, num_bytes, "bytes of requests in memory")
        context.place.num_bytes += num_bytes
        REQUEST_MEMORY_BYTES.set(self._memory.total)

    def leave(self, context: RequestContext) -> None:
        place = context.place
        if place.num_bytes > 0:
            self._memory.remove(context.quota.name, place.num_bytes)
            place.num_bytes = 0
            REQUEST_MEMORY_BYTES.set(self._memory.total)
        if place.is_taken:
            place.is_taken = False
            self._pending.remove(context.quota.name, 1)
            self._left.set()
            context.quota.end_request()
