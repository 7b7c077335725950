"""Shared by both parsers: location tokens, the box that they span, labels."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tasks.generation import Span
from tasks.results import BoxXyxy, Detection, PointXy

_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Location:
    """A location token in a text."""

    bin_index: int
    span: Span


Locations = Sequence[Location]  # adjacent tokens, at least one


def span_of(locations: Locations) -> Span:
    """Return the span of adjacent locations in the text."""
    return (locations[0].span[0], locations[-1].span[1])


def in_pieces(locations: Locations, num_locations: int) -> Iterator[Locations]:
    """Yield the locations in pieces of `num_locations`, without an incomplete last one."""
    for start in range(0, len(locations) - num_locations + 1, num_locations):
        yield locations[start : start + num_locations]


def ordered_box(x1: float, y1: float, x2: float, y2: float) -> BoxXyxy | None:
    """Return the box between two opposite corners in any order, or None if it has no area."""
    if x1 == x2 or y1 == y2:
        return None
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def bounding_box(points_xy: Iterable[PointXy]) -> BoxXyxy | None:
    """Return the smallest box around one or more points, or None if it has no area."""
    xs, ys = zip(*points_xy, strict=True)
    return ordered_box(min(xs), min(ys), max(xs), max(ys))


def resolve_label(written: str, names: Sequence[str]) -> str:
    """Return the requested name that equals `written` ignoring case and article, else `written`.

    If `written` is empty, return the requested name if there is exactly one, else ''.
    """
    if not written:
        return names[0] if len(names) == 1 else ""
    bare = without_article(written).casefold()
    equal = [name for name in names if without_article(name).casefold() == bare]
    return min(equal, key=lambda name: name.casefold() != written.casefold(), default=written)


def spellings(names: Iterable[str]) -> str:
    """Return a grammar (Lark) of the texts that `resolve_label` reads as one of `names`."""
    bare = " | ".join(f"{json.dumps(without_article(name))}i" for name in names)
    return f'" "? ("a "i | "an "i | "the "i)? ({bare})'


def named_as_requested(
    detections: Iterable[Detection], names: Sequence[str]
) -> tuple[Detection, ...]:
    """Return all detections if no `names` were requested, else those with one of them.

    For a name that is not in the image a model may write another one: only the raw text keeps it.
    """
    return tuple(detection for detection in detections if not names or detection.label in names)


def without_article(name: str) -> str:
    """Return `red circle` for `a red circle`."""
    return _ARTICLE.sub("", name)
