"""The places of requests: each counts from before its body is read until its answer is made.

A place counts one request for all limits at once: the requests of the service and their memory, in
fair shares of its clients; the concurrent requests of its key; the traffic that batches give way
to; and the drain before a stop.
"""

import asyncio
import re
import time
import uuid
from dataclasses import dataclass, field

from service.admission.fair_queue import FairShare, ThroughputEstimate
from service.admission.quotas import UNLIMITED, Quota
from service.admission.traffic_gaps import TrafficGaps
from service.errors import NotReady
from service.telemetry.metrics import REQUEST_MEMORY_BYTES

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # safe in logs and headers


def is_valid_request_id(text: str) -> bool:
    return _REQUEST_ID.fullmatch(text) is not None


def request_id_or_new(text: str | None) -> str:
    """Return the client's own request id if it is valid, else a new one."""
    return text if text and is_valid_request_id(text) else uuid.uuid4().hex


@dataclass(slots=True)
class Place:
    """The place of a request, and the memory that belongs to it."""

    is_taken: bool = False
    num_bytes: int = 0  # its body, an image by URL, and values parsed from them
    lease: str = ""  # its key's lease in the store of the shared limits


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
        self._throughput = ThroughputEstimate()
        self._gaps = gaps
        self._left = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        """Memory of all requests, bytes."""
        return int(self._memory.total)

    def check_open(self) -> None:
        """Raise `NotReady` after `close`."""
        if self.is_closed:
            raise NotReady(
                "the service is shutting down; retry on another replica, or here in a minute"
            )

    async def close(self) -> None:
        """Admit no more requests, and return when none has a place."""
        self.is_closed = True
        while self._pending.total:
            self._left.clear()
            await self._left.wait()

    async def take(self, context: RequestContext) -> None:
        """Count a request for the service and for its key until `leave`.

        Raise `Overloaded` above a limit of either. An interface calls it before it reads a body.
        """
        if context.place.is_taken or not context.needs_place:
            return
        client = context.quota.name
        unit = "requests in flight or queued"
        self._pending.take(client, 1, unit, self._throughput.seconds_for)
        try:
            timeout_s = context.deadline_s - time.monotonic()
            context.place.lease = await context.quota.begin_request(timeout_s)
        except BaseException:
            self._pending.remove(client, 1)
            self._left.set()
            raise
        self._throughput.begin()
        if self._gaps is not None:
            self._gaps.begin_online()
        context.place.is_taken = True

    def hold(self, context: RequestContext, num_bytes: int) -> None:
        """Count memory of a request until `leave`.

        Raise `Overloaded` above a limit of all or of the client. A reader calls it for each piece
        that it receives, and before it parses what it has read.
        """
        self._memory.take(context.quota.name, num_bytes, "bytes of requests in memory")
        context.place.num_bytes += num_bytes
        REQUEST_MEMORY_BYTES.set(self._memory.total)

    def shrink(self, context: RequestContext, num_bytes: int) -> None:
        """Give back the memory of a request above `num_bytes`: it has dropped the rest."""
        excess = context.place.num_bytes - num_bytes
        if excess > 0:
            self._memory.remove(context.quota.name, excess)
            context.place.num_bytes = num_bytes
            REQUEST_MEMORY_BYTES.set(self._memory.total)

    async def leave(self, context: RequestContext) -> None:
        """Give back the place of a request and the memory that it holds, if any."""
        self.shrink(context, 0)
        if context.place.is_taken:
            context.place.is_taken = False
            self._throughput.end(1)
            if self._gaps is not None:
                self._gaps.end_online()
            self._pending.remove(context.quota.name, 1)
            self._left.set()
            await context.quota.end_request(context.place.lease)
