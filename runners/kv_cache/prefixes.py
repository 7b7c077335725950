"""Prefixes read by cross-attention: image and prompt, stored once for all beams of a sequence.

A row reads the prefix of its slot. Live prefixes have the numbers 0 to S - 1; a pass over shared
ones groups its rows by prefix, so that attention reads the keys of each once, not once for each
beam. Shapes: B rows, S prefixes, W places of a prefix, one for each beam.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runners.kv_cache.memory import KeyValueCache, SlotLengths, Slots
from runners.kv_cache.shape import DecoderShape


@dataclass(frozen=True, slots=True)
class PrefixReads:
    """The prefixes that a pass reads; row i reads prefix i if there are no `rows` and `places`."""

    prefixes: Slots
    rows: Tensor | None = None  # (S, W) the row in each place; of an empty place, any
    places: Tensor | None = None  # (B,) of each row among the S * W


class PrefixTable:
    """The prefix of each slot, and its place there: on the host, and on the device, where captured
    steps read it.

    Both change together by operations that take numbers of the host as arguments: none waits for
    the device.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._of_slot: list[int | None] = [None] * num_slots
        self._slots: list[dict[int, int]] = []  # slots of each prefix, with their places
        self._prefixes = torch.zeros(num_slots, dtype=torch.long, device=device)  # (slots,)
        self._places = torch.zeros(num_slots, dtype=torch.long, device=device)  # (slots,)
        # (prefixes, places)
        self._rows = torch.zeros(num_slots, num_slots, dtype=torch.long, device=device)

    @property
    def num_prefixes(self) -> int:
        return len(self._slots)

    @property
    def width(self) -> int:
        """The number of places that a pass needs."""
        return max(max(places.values()) for places in self._slots) + 1

    def of(self, slot: int) -> int:
        """Return the prefix of a slot in use."""
        prefix = self._of_slot[slot]
        assert prefix is not None
        return prefix

    def add(self, slots: Sequence[int]) -> int:
        """Add a prefix for free slots, in the order of their places, and return its number.

        `write` has to follow.
        """
        if slots[0] == 0:  # whatever a failed pass has left
            self._slots, self._of_slot = [], [None] * len(self._of_slot)
        for slot in slots:
            self._of_slot[slot] = len(self._slots)
        self._slots.append({slot: place for place, slot in enumerate(slots)})
        return len(self._slots) - 1

    def write(self, slots: Tensor, prefixes: Tensor, places: Tensor) -> None:
        """Write prefix and place of added slots, (B,) each, on the device."""
        self._prefixes[slots] = prefixes
        self._places[slots] = places
        self._rows[prefixes, places] = slots

    def move(self, source: int, target: int) -> None:
        """Give the place of `source` to `target`, a free slot."""
        if (prefix := self._of_slot[source]) is not None:
            self._of_slot[source] = None
            self._put(target, prefix, self._slots[prefix].pop(source))

    def release(self, slot: int) -> tuple[int, int] | None:
        """Free a slot; if its prefix ends, return the last prefix and the number that it gets, for
        its keys to follow.

        A slot without a prefix, whose prefill has failed, is ignored.
        """
        prefix, self._of_slot[slot] = self._of_slot[slot], None
        if prefix is None:
            return None
        del self._slots[prefix][slot]
        if self._slots[prefix]:
            return None
        last = self._slots.pop()
        if prefix == self.num_prefixes:
            return None
        self._slots[prefix] = {}
        for moved, place in last.items():
            self._put(moved, prefix, place)
        return self.num_prefixes, prefix

    def _put(self, slot: int, prefix: int, place: int) -> None:
        self._of_slot[slot] = prefix
        self._slots[prefix][slot] = place
        self._prefixes[slot] = prefix
        self._places[slot] = place
        self._rows[prefix, place] = slot

    def own(self, slots: slice) -> slice | None:
        """Return the prefixes of `slots` if they are consecutive, one per slot; otherwise None."""
        numbers = self._of_slot[slots]
        first = self.of(slots.start)
        consecutive = range(first, first + len(numbers))
        return slice(first, consecutive.stop) if numbers == [*consecutive] else None

    def reads(self, slots: slice) -> PrefixReads:
        """Return what the rows of a pass over `slots` read."""
        if (own := self.own(slots)) is not None:
            return PrefixReads(own)
        return self.grouped(slots.stop, self.num_prefixes, self.width)

    def grouped(self, num_rows: int, num_prefixes: int, width: int) -> PrefixReads:
        """Return what the rows of the slots from 0 on read, with at least as many prefixes and
        places as there are.
        """
        width = min(width, self._rows.shape[1])
        rows = self._rows[:num_prefixes, :width].clamp(max=num_rows - 1)
        places = self._prefixes[:num_rows] * width + self._places[:num_rows]
        places = places.clamp(max=num_prefixes * width - 1)
        return PrefixReads(slice(0, num_prefixes), rows, places)


class PrefixCache:
    """Keys and values of cross-attention, by prefix, and which slot reads which."""

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        self.table = PrefixTable(num_slots, shape.device)
        self.memory = KeyValueCache(shape, num_slots)
        self.lengths = SlotLengths(num_slots, shape.device)  # image and prompt

    def length(self, slots: range) -> int:
        """Return the length of the longest prefix that `slots` read."""
        return max(self.lengths.of(self.table.of(slot) for slot in slots))

    def clear(self, slot: int) -> None:
        """Zero the prefix that a slot reads."""
        self.memory.clear(self.table.of(slot))

    def release(self, slot: int) -> None:
        """Free a slot and, if no other slot reads its prefix, that."""
        moved = self.table.release(slot)
        if moved is not None:
            source = [moved[0]]
            target = [moved[1]]
            self.memory.copy(source, target, slice(0, *self.lengths.of(source)))
            self.lengths.copy(source, target)
