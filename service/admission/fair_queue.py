"""Fair shares of limits, and the fair queue of one runner. Knows amounts, clients and deadlines.

A client alone may use a whole limit, each of n clients 1/n of it: the backlog of one client never
locks out another. While the share of the first shrinks, all clients together may use up to twice
the limit.

A request at the queue of a runner is

    refused   the client has too many tokens queued, or the request would miss its deadline
    waiting   in the order of start-time fair queueing: clients are served equally often, weighted
              by cost
    running   up to a maximum that keeps encoder and decoder busy; half as many more of clients that
              have none running, as the runner is shared fairly, too

Source of the order: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996, section 2. The
cost of a request is its estimated number of tokens.
"""

import asyncio
import heapq
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from service.errors import DeadlineExceeded, Overloaded
from wire.telemetry.runner_metrics import QUEUE_DEPTH
from wire.telemetry.tracing import span

_MAX_OVERCOMMIT = 2
_MAX_CLIENTS = 1_000  # with more, those that have none queued are forgotten
_TIME_CONSTANT_S = 10.0  # busy time after which work has weight 1/e
_FORGET_AFTER_S = 10.0  # idle time after which the estimate is dropped: the load has changed
# costs are estimates and the machine is shared: an early refusal is better than a late answer
_SAFETY_FACTOR = 1.25


class FairShare:
    """Pending amounts by client, `total` of all clients."""

    def __init__(self, limit: float) -> None:
        self.total = 0
        self.pending: Counter[str] = Counter()  # keys: clients with pending work
        self._limit = limit

    def share(self, client: str) -> float:
        num_clients = len(self.pending) + (client not in self.pending)
        return self._limit / num_clients

    def usage(self, client: str, unit: str) -> str:
        """Return, for an error message, what is pending and what is allowed."""
        share = f"{self.pending[client]:.0f} of {self.share(client):.0f} {unit}"
        of_all = f"{self.total:.0f} of {self._limit * _MAX_OVERCOMMIT:.0f}"
        return f"this client has {share}, all clients together {of_all}"

    def take(self, client: str, amount: int, unit: str) -> None:
        """Count `amount` of a client as pending; raise `Overloaded`, in `unit`, unless it fits."""
        if self.excess(client, amount) > 0:
            raise Overloaded(self.usage(client, unit))
        if amount > 0:
            self.pending[client] += amount
            self.total += amount

    def excess(self, client: str, amount: int) -> float:
        """Return by how much a further `amount` exceeds share or overcommit; <= 0 if it fits."""
        over_share = self.pending[client] + amount - self.share(client)
        return max(over_share, self.total + amount - self._limit * _MAX_OVERCOMMIT)

    def remove(self, client: str, amount: int) -> None:
        self.pending[client] -= amount
        self.total -= amount
        if self.pending[client] <= 0:
            del self.pending[client]


class ClientSlots:
    """Slots for which work waits; one client gets at most `num_of_client`."""

    def __init__(self, num_slots: int, num_of_client: int) -> None:
        self._num_of_client = num_of_client
        self._slots = asyncio.Semaphore(num_slots)
        self._slots_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        of_client = self._slots_of.setdefault(client, asyncio.Semaphore(self._num_of_client))
        async with of_client, self._slots:
            yield


class FairSlots:
    """Slots for which work waits: a client alone gets all, each of n clients 1/n, at least one.

    All together get at most twice as many, as of a `FairShare`.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._taken: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        while not self._is_free(client):
            self._changed.clear()
            await self._changed.wait()
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken -= Counter([client])  # without clients that have none
            self._changed.set()

    def _is_free(self, client: str) -> bool:
        share = max(1, self._num_slots // len(self._taken.keys() | {client}))
        is_within = self._taken.total() < self._num_slots * _MAX_OVERCOMMIT
        return self._taken[client] < share and is_within


class ThroughputEstimate:
    """Work per second, in any unit: an exponentially weighted mean over busy time.

    The first item of a burst says little about the rest: there is no estimate until as many items
    have finished as are in flight.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._num_in_flight = 0
        self._updated_s = -math.inf
        self._forget()

    def _forget(self) -> None:
        self._busy_s = 0.0
        self._done = 0.0
        self._num_finished = 0
        self._is_measured = False

    def begin(self) -> None:
        if self._num_in_flight == 0:
            if self._now() - self._updated_s > _FORGET_AFTER_S:
                self._forget()
            self._updated_s = self._now()
        self._num_in_flight += 1

    def end(self, amount: float) -> None:
        self._num_in_flight -= 1
        self._num_finished += 1
        self._is_measured = self._is_measured or self._num_finished >= self._num_in_flight
        elapsed_s = self._now() - self._updated_s
        self._updated_s = self._now()
        decay = math.exp(-elapsed_s / _TIME_CONSTANT_S)
        self._busy_s = self._busy_s * decay + elapsed_s
        self._done = self._done * decay + amount

    def seconds_for(self, amount: float) -> float:
        """Return the expected seconds for `amount`; 0 without an estimate."""
        return amount * self._busy_s / self._done if self._is_measured and self._done > 0 else 0.0


@dataclass(order=True, slots=True)
class _Waiting:
    virtual_start: float
    number: int
    client: str = field(compare=False)
    cost: int = field(compare=False)
    admission: "asyncio.Future[None]" = field(compare=False, default_factory=asyncio.Future)


class FairQueue:
    """Waiting and running requests of one runner; their cost is in tokens."""

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
        self._running: Counter[str] = Counter()  # requests by client
        self._running_cost = 0
        self._waiting: list[_Waiting] = []  # a heap
        self._waiting_cost = FairShare(max_waiting_cost)
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        # virtual time at which a client's last queued request finishes
        self._last_finish: dict[str, float] = {}
        self._throughput = ThroughputEstimate(now)
        self._depth = QUEUE_DEPTH.labels(model_id, "admission")

    @asynccontextmanager
    async def admitted(self, client: str, cost: int, deadline_s: float) -> AsyncIterator[float]:
        """Run admitted; yield the seconds waited. Raise `Overloaded` or `DeadlineExceeded`."""
        if self._running:
            self.check(client, cost, deadline_s)
        waited_s = 0.0
        with span("admission"):
            max_running = self._max_running  # if fewer are running, none waits
            if client not in self._running:
                max_running += max_running // 2
            if self._running.total() < max_running:
                self._running[client] += 1
            else:
                start_s = self._now()
                await self._wait(client, cost, deadline_s)
                waited_s = self._now() - start_s
        self._running_cost += cost
        self._throughput.begin()
        num_done = 0
        try:
            yield waited_s
            num_done = cost
        finally:
            self._throughput.end(num_done)
            self._running_cost -= cost
            self._release(client)

    def check(self, client: str, cost: int, deadline_s: float) -> None:
        """Raise `Overloaded` above the client's share, and if the deadline would be missed."""
        excess = self._waiting_cost.excess(client, cost)
        if excess > 0 and self._running.total() >= self._max_running:
            usage = self._waiting_cost.usage(client, f"tokens queued for {self._model_id}")
            problem = f"{usage}; this request needs {cost}"
            raise Overloaded(problem, self._throughput.seconds_for(excess))
        # clients are served alternately: until it is done, each gets as much as this one
        pending = self._waiting_cost.pending
        num_clients = len(pending) + (client not in pending)
        served_before = (pending[client] + cost) * num_clients
        ahead = min(self._waiting_cost.total + cost, served_before)
        needed_s = self._throughput.seconds_for(self._running_cost + ahead) * _SAFETY_FACTOR
        late_s = self._now() + needed_s - deadline_s
        if late_s > 0:
            problem = f"with the work queued for {self._model_id}, this request would finish"
            raise Overloaded(f"{problem} {late_s:.1f} s after its deadline", late_s)

    async def _wait(self, client: str, cost: int, deadline_s: float) -> None:
        if len(self._last_finish) > _MAX_CLIENTS:  # clients without keys may be any number
            pending = self._waiting_cost.pending
            self._last_finish = {
                name: finish for name, finish in self._last_finish.items() if name in pending
            }
        virtual_start = max(self._virtual_time, self._last_finish.get(client, 0.0))
        self._last_finish[client] = virtual_start + cost
        waiting = _Waiting(virtual_start, next(self._numbers), client, cost)
        self._waiting_cost.take(client, cost, "tokens queued")  # `check` has admitted them
        heapq.heappush(self._waiting, waiting)
        self._depth.inc()
        try:
            async with asyncio.timeout(deadline_s - self._now()):
                await waiting.admission
        except TimeoutError as error:
            self._abandon(waiting)
            problem = f"the request was still queued for {self._model_id} at its deadline"
            raise DeadlineExceeded(f"{problem}; allow more time or retry later") from error
        except asyncio.CancelledError:
            self._abandon(waiting)
            raise

    def _abandon(self, waiting: _Waiting) -> None:
        """Remove a request from the queue; if it was just admitted, admit the next one instead."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            heapq.heapify(self._waiting)
            self._note_dequeued(waiting)
        elif not waiting.admission.cancelled():
            self._release(waiting.client)

    def _release(self, client: str) -> None:
        self._running -= Counter([client])  # without clients that have none
        while self._waiting and self._running.total() < self._max_running:
            waiting = heapq.heappop(self._waiting)
            self._virtual_time = waiting.virtual_start
            self._note_dequeued(waiting)
            if not waiting.admission.cancelled():
                self._running[waiting.client] += 1
                waiting.admission.set_result(None)

    def _note_dequeued(self, waiting: _Waiting) -> None:
        self._depth.dec()
        self._waiting_cost.remove(waiting.client, waiting.cost)
        if not self._waiting:
            self._last_finish.clear()
            self._virtual_time = 0.0
