"""Location tokens in a generated text, whatever their family: a bin and where it is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.generation import Span


@dataclass(frozen=True, slots=True)
class Location:
    """A location token in a text."""

    bin_index: int
    span: Span


Locations = Sequence[Location]  # neighbours, at least one


def span_of(locations: Locations) -> Span:
    """Return where neighbouring locations stand in the text."""
    return (locations[0].span[0], locations[-1].span[1])


def in_pieces(locations: Locations, num_locations: int) -> Iterator[Locations]:
    """Yield the locations in pieces of `num_locations`, without an incomplete last one."""
    for start in range(0, len(locations) - num_locations + 1, num_locations):
        yield locations[start : start + num_locations]
