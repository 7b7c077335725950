"""The fair queue of one runner: requests wait here, not in the runner.

    refused   the client has too many tokens queued, or the request would miss its deadline
    waiting   in the order of start-time fair queueing: clients are served equally often, weighted
              by cost
    running   up to a maximum that keeps encoder and decoder busy

Source of the order: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996, section 2. The
cost of a request is its estimated number of tokens. The queue knows clients, costs and deadlines;
no HTTP, no tasks.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.admission.load import FairShare, ThroughputEstimate
from service.errors import DeadlineExceeded, Overloaded
from wire.telemetry.runner_metrics import QUEUE_DEPTH

# costs are estimates and the machine is shared: an early refusal is better than a late answer
_SAFETY_FACTOR = 1.25


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """The facts of a request that decide its place in the queue."""

    client: str
    cost: int  # tokens
    deadline_s: float  # time.monotonic()


@dataclass(order=True, slots=True)
class _Waiting:
    virtual_start: float
    number: int
    request: QueuedRequest = field(compare=False)
    admission: "asyncio.Future[None]" = field(compare=False)


class FairQueue:
    """Waiting and running requests of one runner."""

    def __init__(
        self,
        model_id: str,
        max_running: int,
        max_waiting_cost: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_id = model_id
        self._max_running = max_running
        self._now = now
        self._num_running = 0
        self._waiting: list[_Waiting] = []  # a heap
        self._waiting_cost = FairShare(max_waiting_cost)
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        # virtual time at which a client's last queued request finishes
        self._last_finish: dict[str, float] = {}
        self._throughput = ThroughputEstimate(now)
        self._running_cost = 0
        self._depth = QUEUE_DEPTH.labels(model_id, "admission")

    @asynccontextmanager
    async def admitted(self, request: QueuedRequest) -> AsyncIterator[float]:
        """Run admitted; yield the seconds waited. Raise `Overloaded` or `DeadlineExceeded`."""
        if self._num_running:
            self.check(request)
        waited_s = 0.0
        if self._num_running < self._max_running:  # then none waits
            self._num_running += 1
        else:
            waited_s = await self._wait(request)
        self._running_cost += request.cost
        self._throughput.begin()
        done = 0
        try:
            yield waited_s
            done = request.cost
        finally:
            self._throughput.end(done)
            self._running_cost -= request.cost
            self._release()

    def check(self, request: QueuedRequest) -> None:
        """Raise `Overloaded` above the client's share, and if the deadline would be missed."""
        excess = self._waiting_cost.excess(request.client, request.cost)
        if excess > 0 and self._num_running >= self._max_running:
            usage = self._waiting_cost.usage(request.client, f"tokens queued for {self._model_id}")
            raise Overloaded(
                f"{usage}; this request needs {request.cost}", self._throughput.seconds_for(excess)
            )
        # clients are served alternately: until it is done, each gets as much as this one
        own = self._waiting_cost.of(request.client) + request.cost
        num_clients = self._waiting_cost.num_clients_with(request.client)
        ahead = min(self._waiting_cost.total + request.cost, own * num_clients)
        needed_s = self._throughput.seconds_for(self._running_cost + ahead) * _SAFETY_FACTOR
        late_s = self._now() + needed_s - request.deadline_s
        if late_s > 0:
            problem = f"with the work queued for {self._model_id}, this request would finish"
            raise Overloaded(f"{problem} {late_s:.1f} s after its deadline", late_s)

    async def _wait(self, request: QueuedRequest) -> float:
        """Return the seconds waited."""
        start_s = self._now()
        start = max(self._virtual_time, self._last_finish.get(request.client, 0.0))
        self._last_finish[request.client] = start + request.cost
        waiting = _Waiting(
            start, next(self._numbers), request, asyncio.get_running_loop().create_future()
        )
        heapq.heappush(self._waiting, waiting)
        self._waiting_cost.add(request.client, request.cost)
        self._depth.inc()
        try:
            async with asyncio.timeout(request.deadline_s - self._now()):
                await waiting.admission
        except TimeoutError as error:
            self._abandon(waiting)
            problem = f"the request was still queued for {self._model_id} at its deadline"
            raise DeadlineExceeded(f"{problem}; allow more time or retry later") from error
        except asyncio.CancelledError:
            self._abandon(waiting)
            raise
        return self._now() - start_s

    def _abandon(self, waiting: _Waiting) -> None:
        """Remove a request from the queue; if it was just admitted, admit the next one instead."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            heapq.heapify(self._waiting)
            self._dequeued(waiting)
        elif not waiting.admission.cancelled():
            self._release()

    def _release(self) -> None:
        """Count a request as no longer running; admit waiting ones, in order, up to the maximum."""
        self._num_running -= 1
        while self._waiting and self._num_running < self._max_running:
            waiting = heapq.heappop(self._waiting)
            self._virtual_time = waiting.virtual_start
            self._dequeued(waiting)
            if not waiting.admission.cancelled():
                self._num_running += 1
                waiting.admission.set_result(None)

    def _dequeued(self, waiting: _Waiting) -> None:
        self._depth.dec()
        self._waiting_cost.remove(waiting.request.client, waiting.request.cost)
        if not self._waiting:
            self._last_finish.clear()
            self._virtual_time = 0.0
