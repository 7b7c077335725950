"""Points, boxes, rings and masks; needs numpy only.

Coordinates are in pixels of the original, upright image. Masks are boolean arrays (H, W). A pixel
is inside if a ray from its centre crosses an odd number of edges of all rings (the even-odd rule):
a ring within a ring is a hole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

PointXy = tuple[float, float]
BoxXyxy = tuple[float, float, float, float]
QuadXy = tuple[PointXy, PointXy, PointXy, PointXy]
Ring = tuple[PointXy, ...]
Mask = NDArray[np.bool_]

# offset of the characters of compressed run lengths
_ASCII_ZERO = 48


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


def corners(box_xyxy: BoxXyxy) -> QuadXy:
    x1, y1, x2, y2 = box_xyxy
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def joined_rings(rings: Sequence[Ring]) -> list[PointXy]:
    """Return one ring around several, joined by lines that are traversed both ways."""
    first, *others = rings
    start = first[0]
    joined = list(first)
    for ring in others:
        joined += [start, *ring, ring[0]]
    return [*joined, start] if others else joined


def polygons_mask(rings: Iterable[Ring], image: ImageSize) -> Mask:
    """Return the inside of the rings by the even-odd rule."""
    crossings = np.zeros((image.height, image.width + 1), dtype=np.int32)
    for ring in rings:
        for (x1, y1), (x2, y2) in pairwise((*ring, ring[0])):
            ends = np.ceil([min(y1, y2) - 0.5, max(y1, y2) - 0.5])
            top, bottom = np.clip(ends, 0, image.height).astype(int)
            rows = np.arange(top, bottom)  # rows whose centres lie between the two ends
            xs = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1) if len(rows) else rows
            crossings[rows, np.clip(np.ceil(xs - 0.5), 0, image.width).astype(int)] += 1
    inside: Mask = np.cumsum(crossings[:, : image.width], axis=1) % 2 == 1
    return inside


def run_length_mask(mask: RunLengthMask) -> Mask:
    """Decode COCO's compressed run lengths; source: cocoapi, common/maskApi.c (rleFrString)."""
    runs: list[int] = []
    number = shift = 0
    for character in mask.counts:  # five bits of a number each, least significant first
        bits = ord(character) - _ASCII_ZERO
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (1 << shift) if bits & 16 else 0
            runs.append(number + runs[-2] if len(runs) > 2 else number)
            number = shift = 0
    values = np.arange(len(runs)) % 2 == 1
    height, width = mask.size_hw
    return np.repeat(values, runs).reshape(width, height).T


def uncompressed_run_lengths(mask: Mask) -> list[int]:
    """Return COCO's uncompressed run lengths: by column, the first run counts pixels outside."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], ends, [flat.size])))
    return [int(run) for run in (np.concatenate(([0], runs)) if flat[0] else runs)]
