"""Whose turn it is at one model: requests wait here, not in the runners, so that none of them waits for nothing.

    refused   its client has too much waiting, or it could not be answered before its deadline
    waiting   in the order of start-time fair queueing: a client's turns come as often as others', weighed by cost
    running   as many as keep encoder and decoder busy

Source of the order: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996, section 2. A request's cost is its
number of tokens, by estimate. It knows clients, costs and deadlines; no HTTP, no tasks.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from runners.telemetry.metrics import QUEUE_DEPTH
from service.admission.fair_share import FairShares
from service.admission.throughput import DrainRate
from service.errors import DeadlineExceeded, Overloaded

_CAUTION = 1.25  # costs are estimates, and what runs shares the machine: rather refused than late


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request wants of a model."""

    client: str
    cost: int  # tokens
    deadline_s: float  # on the clock of time.monotonic()


@dataclass(order=True, slots=True)
class _Waiting:
    virtual_start: float
    number: int
    demand: Demand = field(compare=False)
    turn: "asyncio.Future[None]" = field(compare=False)


class Turns:
    """The requests of one model, waiting and running."""

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
        self._shares = FairShares(max_waiting_cost)
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._last_finish: dict[str, float] = {}  # of clients, on the virtual clock
        self._drain_rate = DrainRate(now)
        self._running_cost = 0
        self._depth = QUEUE_DEPTH.labels(model_id, "admission")

    @asynccontextmanager
    async def turn(self, demand: Demand) -> AsyncIterator[float]:
        """Wait for a turn and hold it; yield the seconds waited. Raise `Overloaded` or `DeadlineExceeded`."""
        waited_s = await self._take_turn(demand)
        self._running_cost += demand.cost
        self._drain_rate.begin()
        done = 0
        try:
            yield waited_s
            done = demand.cost
        finally:
            self._drain_rate.end(done)
            self._running_cost -= demand.cost
            self._release()

    async def _take_turn(self, demand: Demand) -> float:
        """Return the seconds waited."""
        self._refuse_hopeless(demand)
        self._give_turns()
        if self._num_running < self._max_running:
            self._num_running += 1
            return 0.0
        start_s = self._now()
        await self._wait(demand)
        return self._now() - start_s

    def _refuse_hopeless(self, demand: Demand) -> None:
        """Raise `Overloaded`, with the seconds after which there is hope, for what would wait in vain."""
        excess = self._shares.excess(demand.client, demand.cost)
        if excess > 0 and self._num_running >= self._max_running:
            message = f"{self._shares.of(demand.client):.0f} tokens of this client wait for {self._model_id} already"
            raise Overloaded(f"{message}, the most that are allowed now", self._drain_rate.seconds_for(excess))
        needed_s = self._drain_rate.seconds_for(self._cost_before(demand)) * _CAUTION
        late_s = self._now() + needed_s - demand.deadline_s
        if late_s > 0 and self._num_running:
            message = f"{self._model_id} has work for longer than this request's time, by {late_s:.1f} s"
            raise Overloaded(f"{message}; give it more or come back", late_s)

    def _cost_before(self, demand: Demand) -> float:
        """Return what is done before its end, if other clients that wait are served like its own: it, too, is."""
        own = self._shares.of(demand.client) + demand.cost
        waiting = min(self._shares.total + demand.cost, own * self._shares.num_clients_with(demand.client))
        return self._running_cost + waiting

    async def _wait(self, demand: Demand) -> None:
        waiting = self._enqueue(demand)
        try:
            async with asyncio.timeout(demand.deadline_s - self._now()):
                await waiting.turn
        except TimeoutError as error:
            self._give_up(waiting)
            message = f"{self._model_id} did not answer in the time of the request: it was not its turn"
            raise DeadlineExceeded(message) from error
        except asyncio.CancelledError:
            self._give_up(waiting)
            raise

    def _enqueue(self, demand: Demand) -> _Waiting:
        start = max(self._virtual_time, self._last_finish.get(demand.client, 0.0))
        self._last_finish[demand.client] = start + demand.cost
        waiting = _Waiting(start, next(self._numbers), demand, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, waiting)
        self._shares.add(demand.client, demand.cost)
        self._depth.inc()
        return waiting

    def _give_up(self, waiting: _Waiting) -> None:
        """Take a request out of the queue, or pass on the turn that it was just given."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            heapq.heapify(self._waiting)
            self._forget(waiting)
        elif not waiting.turn.cancelled():
            self._release()

    def _release(self) -> None:
        self._num_running -= 1
        self._give_turns()

    def _give_turns(self) -> None:
        """Give the turns that are free to the next that still want one."""
        while self._waiting and self._num_running < self._max_running:
            waiting = heapq.heappop(self._waiting)
            self._virtual_time = waiting.virtual_start
            self._forget(waiting)
            if not waiting.turn.cancelled():
                self._num_running += 1
                waiting.turn.set_result(None)

    def _forget(self, waiting: _Waiting) -> None:
        self._depth.dec()
        self._shares.remove(waiting.demand.client, waiting.demand.cost)
        if not self._waiting:
            self._last_finish.clear()
            self._virtual_time = 0.0
