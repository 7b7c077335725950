"""The load of the service: pending work by client, throughput, requests in flight.

A client alone may use a whole limit, each of n clients 1/n of it: the backlog of one client never
locks out another. While the share of the first shrinks, all clients together may use up to twice
the limit. Knows amounts, no requests.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from service.errors import NotReady, Overloaded

_MAX_OVERCOMMIT = 2
_TIME_CONSTANT_S = 10.0  # busy time after which work has weight 1/e
_FORGET_AFTER_S = 10.0  # idle time after which the estimate is dropped: the load has changed


class FairShare:
    """Pending amounts by client, `total` of all clients."""

    def __init__(self, limit: float, max_of_client: float = math.inf) -> None:
        self.total = 0.0
        self._limit = limit
        self._max_of_client = max_of_client
        self._pending: dict[str, float] = {}

    def of(self, client: str) -> float:
        """Return the pending amount of a client."""
        return self._pending.get(client, 0)

    def num_clients_with(self, client: str) -> int:
        """Return the number of clients with pending work, `client` included."""
        return len(self._pending) + (client not in self._pending)

    def usage(self, client: str, unit: str) -> str:
        """Return, for an error message, what is pending and what is allowed."""
        mine = f"this client has {self.of(client):.0f} of {self._share(client):.0f} {unit}"
        return (
            f"{mine}, all clients together {self.total:.0f} of {self._limit * _MAX_OVERCOMMIT:.0f}"
        )

    def take(
        self,
        client: str,
        amount: float,
        unit: str,
        seconds_for: Callable[[float], float] = lambda _excess: 0,
    ) -> None:
        """Count `amount` of a client as pending; raise `Overloaded` if it does not fit.

        `unit` names the amounts in the message; `seconds_for` returns the time in which an excess
        is done.
        """
        excess = self.excess(client, amount)
        if excess > 0:
            raise Overloaded(self.usage(client, unit), seconds_for(excess))
        self.add(client, amount)

    def excess(self, client: str, amount: float) -> float:
        """Return by how much a further `amount` exceeds share or overcommit; <= 0 if it fits."""
        over_share = self._pending.get(client, 0) + amount - self._share(client)
        return max(over_share, self.total + amount - self._limit * _MAX_OVERCOMMIT)

    def _share(self, client: str) -> float:
        num_clients = len(self._pending) + (client not in self._pending)
        return min(self._limit / num_clients, self._max_of_client)

    def add(self, client: str, amount: float) -> None:
        """Count `amount` of a client as pending."""
        self._pending[client] = self._pending.get(client, 0) + amount
        self.total += amount

    def remove(self, client: str, amount: float) -> None:
        """Count `amount` of a client as done."""
        self._pending[client] -= amount
        self.total -= amount
        if self._pending[client] <= 0:
            del self._pending[client]


class ClientSlots:
    """Slots for which work waits; one client gets at most `num_of_client`."""

    def __init__(self, num_slots: int, num_of_client: int) -> None:
        self._num_of_client = num_of_client
        self._slots = asyncio.Semaphore(num_slots)
        self._slots_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for as long as the context lasts."""
        of_client = self._slots_of.setdefault(client, asyncio.Semaphore(self._num_of_client))
        async with of_client, self._slots:
            yield


class ThroughputEstimate:
    """Work per second, in any unit: an exponentially weighted mean over busy time.

    The first item of a burst says little about the rest: there is no estimate until as many items
    have finished as are in flight.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._num_in_flight = 0
        self._updated_s = 0.0
        self._busy_s = 0.0
        self._done = 0.0
        self._num_finished = 0
        self._is_measured = False

    def begin(self) -> None:
        """Record the start of an item of work."""
        if self._num_in_flight == 0:
            if self._now() - self._updated_s > _FORGET_AFTER_S:
                self._busy_s = 0.0
                self._done = 0.0
                self._num_finished = 0
                self._is_measured = False
            self._updated_s = self._now()
        self._num_in_flight += 1

    def end(self, amount: float) -> None:
        """Record the end of an item of work, and how much of it was done."""
        self._num_in_flight -= 1
        self._num_finished += 1
        self._is_measured = self._is_measured or self._num_finished >= self._num_in_flight
        elapsed_s, self._updated_s = self._now() - self._updated_s, self._now()
        decay = math.exp(-elapsed_s / _TIME_CONSTANT_S)
        self._busy_s, self._done = self._busy_s * decay + elapsed_s, self._done * decay + amount

    def seconds_for(self, amount: float) -> float:
        """Return the expected seconds for `amount`; 0 without an estimate."""
        return amount * self._busy_s / self._done if self._is_measured and self._done > 0 else 0.0


class DrainGate:
    """Counts requests in flight; after `close` it admits no more and waits for the last."""

    def __init__(self) -> None:
        self.is_closed = False
        self._num_inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request in flight for as long as the context lasts."""
        self._num_inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._num_inside -= 1
            if not self._num_inside:
                self._empty.set()

    def check(self) -> None:
        """Raise `NotReady` if the gate is closed."""
        if self.is_closed:
            raise NotReady(
                "the service is shutting down; retry on another replica, or here in a minute"
            )

    async def close(self) -> None:
        """Admit no more requests, and return when none is in flight."""
        self.is_closed = True
        await self._empty.wait()
