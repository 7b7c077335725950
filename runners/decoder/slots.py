"""The assignment of cache slots to sequences.

Problem: a pass reads a plain slice of slots, but sequences have different numbers of rows and leave
in any order.

Solution: slots in use are always 0 to n - 1. A sequence takes the next ones; when one is freed, the
row in the last slot moves there. Moves and frees are values, which the caller applies to the cache
in their order.

Invariants:
- every slot below `num_used` has one owner, and each owner the slots that it was given, in the
  order of its rows;
- the slots of a sequence may be anywhere, in any order: a pass in flight keeps its own row numbers;
- a freed sequence is never the one that moves.

Knows neither torch nor sequences: owners are only compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

OwnerT = TypeVar("OwnerT")


@dataclass(frozen=True, slots=True)
class FreedSlot(Generic[OwnerT]):
    """A slot that is free; the row of `moved` in `last`, the last slot in use, moves there."""

    slot: int
    last: int
    moved: OwnerT | None  # None: the slot itself was the last


class SlotTable(Generic[OwnerT]):
    """The owners of slots, in order of their admission."""

    def __init__(self) -> None:
        self._owners: list[OwnerT] = []  # owner of each slot
        self._slots: dict[OwnerT, list[int]] = {}  # slots of each owner, in row order

    @property
    def owners(self) -> list[OwnerT]:
        """All owners, in order of admission."""
        return list(self._slots)

    @property
    def num_used(self) -> int:
        return len(self._owners)

    def __contains__(self, owner: object) -> bool:
        return owner in self._slots

    def of(self, owner: OwnerT) -> Sequence[int]:
        """Return the slots of an owner, in the order of its rows."""
        return tuple(self._slots[owner])

    def rows(self) -> dict[OwnerT, Sequence[int]]:
        """Return the slots of all owners as they are now: the rows of a pass launched now."""
        return {owner: tuple(slots) for owner, slots in self._slots.items()}

    def by_slot(self, values: Callable[[OwnerT], Sequence[int]]) -> list[int]:
        """Return the value of each slot; `values` returns one for each row of an owner."""
        by_slot = [0] * len(self._owners)
        for owner, slots in self._slots.items():
            for slot, value in zip(slots, values(owner), strict=True):
                by_slot[slot] = value
        return by_slot

    def slot_owners(self) -> list[OwnerT]:
        """Return the owner of each slot in use."""
        return list(self._owners)

    def take(self, owner: OwnerT, num_slots: int = 1) -> Sequence[int]:
        """Give an owner the next free slots, and return these."""
        taken = range(len(self._owners), len(self._owners) + num_slots)
        self._owners += [owner] * num_slots
        self._slots.setdefault(owner, []).extend(taken)
        return taken

    def free(self, owner: OwnerT) -> list[FreedSlot[OwnerT]]:
        """Free all slots of an owner, the last first; none if it has none."""
        freed: list[FreedSlot[OwnerT]] = []
        for slot in sorted(self._slots.pop(owner, ()), reverse=True):
            last = len(self._owners) - 1
            moved = self._owners.pop()
            if slot == last:
                freed.append(FreedSlot(slot, last, None))
                continue
            self._owners[slot] = moved
            own = self._slots[moved]
            own[own.index(last)] = slot
            freed.append(FreedSlot(slot, last, moved))
        return freed

    def clear(self) -> None:
        self._owners.clear()
        self._slots.clear()
