"""Points, boxes, rings and masks; needs numpy only.

Coordinates are in pixels of the original, upright image. Masks are boolean arrays (H, W). A pixel is inside if a ray
from its centre crosses an odd number of edges of all rings (the even-odd rule): a ring within a ring is a hole.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PointXy = tuple[float, float]
BoxXyxy = tuple[float, float, float, float]
QuadXy = tuple[PointXy, PointXy, PointXy, PointXy]
Ring = tuple[PointXy, ...]
Mask = NDArray[np.bool_]

_MIN_POINTS = 3  # of a ring that encloses something
_ASCII_ZERO = 48  # offset of the characters of compressed run lengths: five bits of a number, one continuation bit


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Size of the upright image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """Mask of the whole image as COCO's compressed run lengths."""

    size_hw: tuple[int, int]
    counts: str


def bounding_box(points_xy: Ring) -> BoxXyxy:
    xs, ys = zip(*points_xy, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def polygons_mask(rings: Iterable[Ring], image: ImageSize) -> Mask:
    """Return the inside of the rings by the even-odd rule."""
    crossings = np.zeros((image.height, image.width + 1), dtype=np.int32)
    for ring in rings:
        for (x1, y1), (x2, y2) in pairwise((*ring, ring[0])):
            top, bottom = np.clip(np.ceil([min(y1, y2) - 0.5, max(y1, y2) - 0.5]), 0, image.height).astype(int)
            rows = np.arange(top, bottom)  # rows whose centres lie between the two ends
            xs = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1) if len(rows) else rows
            crossings[rows, np.clip(np.ceil(xs - 0.5), 0, image.width).astype(int)] += 1
    inside: Mask = np.cumsum(crossings[:, : image.width], axis=1) % 2 == 1
    return inside


def run_length_mask(mask: RunLengthMask) -> Mask:
    """Decode COCO's compressed run lengths.

    Source: cocoapi, common/maskApi.c (rleFrString).
    """
    runs: list[int] = []
    for number in _signed_numbers(mask.counts):
        runs.append(number + runs[-2] if len(runs) > 2 else number)
    values = np.arange(len(runs)) % 2 == 1
    height, width = mask.size_hw
    return np.repeat(values, runs).reshape(width, height).T


def _signed_numbers(counts: str) -> Iterator[int]:
    """Yield the numbers of the string, five bits a character, least significant first."""
    number = shift = 0
    for character in counts:
        bits = ord(character) - _ASCII_ZERO
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            yield number - (1 << shift) if bits & 16 else number
            number = shift = 0


def uncompressed_run_lengths(mask: Mask) -> list[int]:
    """Return COCO's uncompressed run lengths: column by column, the first run counts pixels outside."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], ends, [flat.size])))
    return [int(run) for run in (np.concatenate(([0], runs)) if flat[0] else runs)]


def outer_rings(rings: Iterable[Ring]) -> list[Ring]:
    """Return the rings that are no holes, for formats whose polygons have none."""
    enclosing = [ring for ring in rings if len(ring) >= _MIN_POINTS]
    return [
        ring
        for ring in enclosing
        if sum(_is_inside(ring[0], other) for other in enclosing if other is not ring) % 2 == 0
    ]


def _is_inside(point: PointXy, ring: Ring) -> bool:
    """Return True if a ray to the right of the point crosses the ring an odd number of times."""
    x, y = point
    edges = pairwise((*ring, ring[0]))
    crossings = (x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x for (x1, y1), (x2, y2) in edges if (y1 > y) != (y2 > y))
    return sum(crossings) % 2 == 1


def simplified_ring(ring: Ring, tolerance_px: float) -> Ring:
    """Return the ring without points that are within the tolerance of a line between others.

    Source: Douglas and Peucker, "Algorithms for the reduction of the number of points", 1973.
    """
    far = max(range(len(ring)), key=lambda index: math.dist(ring[0], ring[index]))
    halves = (ring[: far + 1], (*ring[far:], ring[0]))
    kept = [point for half in halves for point in _simplified_line(half, tolerance_px)[:-1]]
    return tuple(kept) if len(kept) >= _MIN_POINTS else ring


def _simplified_line(points: Sequence[PointXy], tolerance_px: float) -> list[PointXy]:
    kept, pending = {0, len(points) - 1}, [(0, len(points) - 1)]
    while pending:
        start, end = pending.pop()
        between = range(start + 1, end)
        far = max(between, key=lambda at: _distance(points[at], points[start], points[end]), default=None)
        if far is not None and _distance(points[far], points[start], points[end]) > tolerance_px:
            kept.add(far)
            pending += [(start, far), (far, end)]
    return [points[index] for index in sorted(kept)]


def _distance(point: PointXy, start: PointXy, end: PointXy) -> float:
    """Return the distance of a point to the line through two others, or to their one point."""
    (x, y), (x1, y1), (x2, y2) = point, start, end
    length = math.dist(start, end)
    return math.dist(point, start) if length == 0 else abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length
