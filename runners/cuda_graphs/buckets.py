"""Shapes of captured steps: few, for memory and capture time, but large enough for any batch.

A step runs in the smallest that holds it; the excess consists of free slots and masked positions.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import product

# positions beside the least of a sequence; each is four times the one before: masked cost little
_SMALLEST_ROOM = 64
_ALIGNMENT = 16
_USUAL_PROMPT = 63  # tokens


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a captured step: its rows, the positions read of each slot, and its prefixes."""

    num_rows: int
    length: int
    num_prefixes: int = 0  # prefixes shared by beams; 0: row i reads prefix i
    prefix_length: int = 0  # positions read of each prefix
    has_adapters: bool = False

    def holds(self, other: "Bucket") -> bool:
        """Return True if a step of the shape `other` can run in this one."""
        if bool(self.num_prefixes) != bool(other.num_prefixes):
            return False
        pairs = zip(astuple(self), astuple(other), strict=True)
        return all(own >= needed for own, needed in pairs)


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


def prompt_lengths(num_image_tokens: int, num_positions: int) -> list[int]:
    """Return the padded lengths of an image with its prompt, without those of long prompts."""
    longest = num_image_tokens + _USUAL_PROMPT
    shortest = (num_image_tokens // _ALIGNMENT + 1) * _ALIGNMENT
    lengths = range(shortest, longest + _ALIGNMENT, _ALIGNMENT)
    return [length for length in lengths if length <= num_positions]


def prefix_lengths(num_image_tokens: int, num_positions: int) -> list[int]:
    """Return the numbers of positions that steps read of prefixes: with usual prompts, and all."""
    usual = prompt_lengths(num_image_tokens, num_positions)
    return sorted({*usual[-1:], num_positions})


def buckets(
    num_slots: int,
    num_positions: int,
    min_length: int = 0,
    shared: Sequence[tuple[int, int]] = (),
    prefixes: Sequence[int] = (0,),
    adapters: Sequence[bool] = (False,),
) -> list[Bucket]:
    """Return all buckets of a cache, the largest first.

    Every sequence has at least `min_length` positions. `shared` are those of `shared_prefixes`,
    `prefixes` those of `prefix_lengths`; `adapters`: whether steps have them.
    """
    lengths = {num_positions}
    room = _SMALLEST_ROOM
    while min_length + room < num_positions:
        lengths.add(min_length + room)
        room *= 4
    sizes = sorted([*((num, 0) for num in row_counts(num_slots)), *shared], reverse=True)
    found = product(sizes, sorted(lengths, reverse=True), sorted(prefixes, reverse=True), adapters)
    return [
        Bucket(num, length, num_shared, own, has_adapters)
        for (num, num_shared), length, own, has_adapters in found
    ]
