"""Batches that wait for their turn, kept as nothing but their ids.

API keys take turns, and of one key the oldest batch comes first. It knows no files.
"""

import itertools
from collections.abc import Container


class WaitingBatches:
    """The ids of batches, by the owner that their API key identifies."""

    def __init__(self) -> None:
        self._ids: dict[str, set[str]] = {}
        self._turns = itertools.count(1)
        self._last_turn: dict[str, int] = {}

    def add(self, owner: str, batch_id: str) -> None:
        self._ids.setdefault(owner, set()).add(batch_id)

    def remove(self, owner: str, batch_id: str) -> bool:
        """Remove a batch; return False if it does not wait."""
        is_waiting = batch_id in self._ids.get(owner, ())
        if is_waiting:
            self._ids[owner].remove(batch_id)
        return is_waiting

    def take(self, busy: Container[str] = ()) -> tuple[str, str] | None:
        """Remove the next batch, whose owner is not in `busy`; return owner and batch id."""
        owners = [owner for owner, ids in self._ids.items() if ids and owner not in busy]
        if not owners:
            return None
        owner = min(owners, key=lambda each: self._last_turn.get(each, 0))
        self._last_turn[owner] = next(self._turns)
        batch_id = min(self._ids[owner])
        self._ids[owner].remove(batch_id)
        return owner, batch_id
