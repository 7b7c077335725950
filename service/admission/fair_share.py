"""A bound on what is pending, shared by the clients that have something pending. It knows amounts, not requests.

One client alone may have all of it, each of n clients 1/n: what a heavy client has piled up keeps no light one out.
While the heavy one's share shrinks, all together may have up to twice the bound.
"""

_MOST_BOUNDS = 2


class FairShares:
    """Amounts that are pending, by client."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._pending: dict[str, float] = {}

    @property
    def total(self) -> float:
        """What is pending of all clients."""
        return sum(self._pending.values())

    def of(self, client: str) -> float:
        """Return what is pending of a client."""
        return self._pending.get(client, 0)

    def num_clients_with(self, client: str) -> int:
        """Return how many clients have something pending if `client` has."""
        return len(self._pending.keys() | {client})

    def excess(self, client: str, amount: float) -> float:
        """Return by how much `amount` more of a client would be too much, 0 or less if it is not."""
        over_share = self.of(client) + amount - self._bound / self.num_clients_with(client)
        return max(over_share, self.total + amount - self._bound * _MOST_BOUNDS)

    def add(self, client: str, amount: float) -> None:
        """Count `amount` of a client as pending."""
        self._pending[client] = self.of(client) + amount

    def remove(self, client: str, amount: float) -> None:
        """Count it no more."""
        self.add(client, -amount)
        if self._pending[client] <= 0:
            del self._pending[client]
