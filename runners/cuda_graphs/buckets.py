"""Shapes of captured steps: few, for memory and capture time, but large enough for any batch.

A step runs in the smallest that holds it; the excess consists of free slots and masked positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

# positions beside the least of a sequence; each is four times the one before: masked cost little
_SMALLEST_ROOM = 64


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a captured step: its rows, the positions read of each slot, and its prefixes."""

    num_rows: int
    length: int
    num_prefixes: int = 0  # prefixes shared by beams; 0: row i reads prefix i

    def holds(self, num_rows: int, length: int, num_prefixes: int) -> bool:
        if bool(self.num_prefixes) != bool(num_prefixes) or self.num_prefixes < num_prefixes:
            return False
        return self.num_rows >= num_rows and self.length >= length


def row_counts(num_slots: int) -> list[int]:
    """Return the captured numbers of rows, largest first: its memory serves the others."""
    powers = (1 << power for power in range(num_slots.bit_length()))
    return sorted({num_slots, *(power for power in powers if power < num_slots)}, reverse=True)


def shared_prefixes(num_slots: int, num_beams: int) -> list[tuple[int, int]]:
    """Return the numbers of rows and prefixes of steps in which beams share prefixes.

    With a checkpoint's own number of beams, as few prefixes are read as rows need; any mixture fits
    the largest step.
    """
    counts = {(num, -(-num // num_beams)) for num in row_counts(num_slots) if 1 < num_beams <= num}
    return sorted({(num_slots, num_slots), *counts}, reverse=True)


def buckets(
    num_slots: int,
    num_positions: int,
    min_length: int = 0,
    shared: Sequence[tuple[int, int]] = (),
) -> list[Bucket]:
    """Return all buckets of a cache, the largest first.

    Every sequence has at least `min_length` positions. `shared` are those of `shared_prefixes`.
    """
    lengths = {num_positions}
    room = _SMALLEST_ROOM
    while min_length + room < num_positions:
        lengths.add(min_length + room)
        room *= 4
    sizes = sorted([*((num, 0) for num in row_counts(num_slots)), *shared], reverse=True)
    pairs = product(sizes, sorted(lengths, reverse=True))
    return [Bucket(num, length, prefixes) for (num, prefixes), length in pairs]
