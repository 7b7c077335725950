"""Boxes as a user expects them, from the coordinates that a model wrote."""

from collections.abc import Iterable

from tasks.results import BoxXyxy, PointXy


def ordered_box(x1: float, y1: float, x2: float, y2: float) -> BoxXyxy | None:
    """Return the box between two corners, whichever comes first; None if it has no area."""
    if x1 == x2 or y1 == y2:
        return None
    return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def bounding_box(points_xy: Iterable[PointXy]) -> BoxXyxy | None:
    """Return the smallest box around one or more points; None if it has no area."""
    xs, ys = zip(*points_xy, strict=True)
    return ordered_box(min(xs), min(ys), max(xs), max(ys))
