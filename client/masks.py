"""Masks of polygons and of COCO's run lengths as arrays `(H, W)` of bool, in numpy alone.

A pixel is inside where a ray from its centre meets an odd number of edges of all rings together: a ring in a ring is a
hole, as the contract says.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from client.results import ImageSize, Instance, Ring, RunLengthMask

Mask = NDArray[np.bool_]
_ASCII_ZERO = 48  # of the characters that carry six bits each: five of a number, one that says that more follow


def instance_mask(instance: Instance, image: ImageSize) -> Mask:
    """Return the mask of an instance in the whole image."""
    if instance.mask is not None:
        return run_length_mask(instance.mask)
    return polygons_mask(instance.polygons_xy or (), image)


def polygons_mask(rings: Iterable[Ring], image: ImageSize) -> Mask:
    """Return the inside of rings `(x, y)` by the even-odd rule."""
    crossings = np.zeros((image.height, image.width + 1), dtype=np.int32)
    for ring in rings:
        for (x1, y1), (x2, y2) in pairwise((*ring, ring[0])):
            top, bottom = np.clip(np.ceil([min(y1, y2) - 0.5, max(y1, y2) - 0.5]), 0, image.height).astype(int)
            rows = np.arange(top, bottom)  # whose centres lie between the two ends
            xs = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1) if len(rows) else rows
            crossings[rows, np.clip(np.ceil(xs - 0.5), 0, image.width).astype(int)] += 1
    inside: Mask = np.cumsum(crossings[:, : image.width], axis=1) % 2 == 1
    return inside


def run_length_mask(mask: RunLengthMask) -> Mask:
    """Return the mask that COCO's compressed run lengths stand for (cocoapi, common/maskApi.c, rleFrString)."""
    runs: list[int] = []
    for number in _numbers(mask.counts):
        runs.append(number + runs[-2] if len(runs) > 2 else number)
    values = np.arange(len(runs)) % 2 == 1
    height, width = mask.size_hw
    return np.repeat(values, runs).reshape(width, height).T


def _numbers(counts: str) -> Iterator[int]:
    """Yield the signed numbers of the string, five bits a character, least significant first."""
    number = shift = 0
    for character in counts:
        bits = ord(character) - _ASCII_ZERO
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            yield number - (1 << shift) if bits & 16 else number
            number = shift = 0


def uncompressed_run_lengths(mask: Mask) -> list[int]:
    """Return run lengths down the columns, the first one of pixels outside, as COCO's files hold them."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], ends, [flat.size])))
    return [int(run) for run in (np.concatenate(([0], runs)) if flat[0] else runs)]
