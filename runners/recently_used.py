"""Values by key, bounded in bytes, least recently used out. It knows nothing of what the values are."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What takes memory."""

    @property
    def num_bytes(self) -> int:
        """How much."""
        ...


KeyT = TypeVar("KeyT", bound=Hashable)
SizedT = TypeVar("SizedT", bound=Sized)


class RecentlyUsed(Generic[KeyT, SizedT]):
    """Values, together at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._values: OrderedDict[KeyT, SizedT] = OrderedDict()  # least recently used first

    def get(self, key: KeyT) -> SizedT | None:
        """Return a value that is here, which is now the last to go."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def keep(self, key: KeyT, value: SizedT) -> list[tuple[KeyT, SizedT]]:
        """Keep a value under a new key; return what had to go for it: itself, where it is too large alone."""
        if value.num_bytes > self._max_bytes:
            return [(key, value)]
        self._values[key] = value
        self._num_bytes += value.num_bytes
        dropped = []
        while self._num_bytes > self._max_bytes:
            dropped.append(self._values.popitem(last=False))
            self._num_bytes -= dropped[-1][1].num_bytes
        return dropped
