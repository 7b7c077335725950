"""Limits on work that are shared by the clients that have some. They know amounts, no requests.

A client alone may use the whole limit, each of n clients 1/n of it: the backlog of one client never locks out another.
While the share of the first shrinks, all clients together may use up to twice the limit.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

_MAX_OVERCOMMIT = 2


class FairShare:
    """Pending amounts by client."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._pending: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Pending amount of all clients."""
        return sum(self._pending.values())

    def of(self, client: str) -> float:
        """Return the pending amount of a client."""
        return self._pending.get(client, 0)

    def num_clients_with(self, client: str) -> int:
        """Return the number of clients with pending work, `client` included."""
        return len(self._pending.keys() | {client})

    def usage(self, client: str, unit: str) -> str:
        """Return, for an error message, what is pending and what is allowed."""
        share, allowed = self._limit / self.num_clients_with(client), self._limit * _MAX_OVERCOMMIT
        mine = f"this client has {self.of(client):.0f} of {share:.0f} {unit}"
        return f"{mine}, all clients together {self.total:.0f} of {allowed:.0f}"

    def excess(self, client: str, amount: float) -> float:
        """Return by how much another `amount` of a client exceeds its share or the overcommit; <= 0 if it fits."""
        over_share = self.of(client) + amount - self._limit / self.num_clients_with(client)
        return max(over_share, self.total + amount - self._limit * _MAX_OVERCOMMIT)

    def add(self, client: str, amount: float) -> None:
        """Count `amount` of a client as pending."""
        self._pending[client] = self.of(client) + amount

    def remove(self, client: str, amount: float) -> None:
        """Count `amount` of a client as done."""
        self.add(client, -amount)
        if self._pending[client] <= 0:
            del self._pending[client]


class ClientSlots:
    """Slots for work that is not refused but waits, of which one client gets `num_of_client` at most."""

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
