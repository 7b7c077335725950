"""Masks as COCO's compressed run lengths.

The only module that imports pycocotools, which has no types.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from tasks.results import Ring, RunLengthMask


def encode_mask(mask: NDArray[np.bool_]) -> RunLengthMask:
    """Return a mask (H, W) as run lengths."""
    return _typed(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_rings(rings: Sequence[Ring], image_size_wh: tuple[int, int]) -> RunLengthMask:
    """Return the union of the rings' insides, in an image of that size, as run lengths."""
    width, height = image_size_wh
    flat = [list(chain(*ring)) for ring in rings]
    return _typed(coco.merge(coco.frPyObjects(flat, height, width)))


def decode_mask(mask: RunLengthMask) -> NDArray[np.bool_]:
    encoded = {"size": list(mask.size_hw), "counts": mask.counts.encode("ascii")}
    decoded: NDArray[np.uint8] = coco.decode(encoded)
    return decoded.astype(np.bool_)


def encode_edges(edges: NDArray[np.intp], image_size_wh: tuple[int, int]) -> RunLengthMask:
    """Return a mask by the starts and ends of its runs, in any order; equal ones cancel out.

    They are positions in an image of that size, column by column.
    """
    width, height = image_size_wh
    places, num_equal = np.unique(edges, return_counts=True)
    is_edge = (num_equal % 2 == 1) & (places < width * height)
    bounds = [0, *places[is_edge].tolist(), width * height]
    counts = np.diff(bounds).tolist()
    return _typed(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def place_mask(
    mask: RunLengthMask, left_top: tuple[int, int], image_size_wh: tuple[int, int]
) -> RunLengthMask:
    """Return the mask of a part of an image as that of the image, without pixels."""
    left, top = left_top
    part_height, part_width = mask.size_hw
    edges = _edges(mask)
    columns = np.arange(1, part_width) * part_height
    next_edges = np.searchsorted(edges, columns)
    is_within = (next_edges % 2 == 1) & (np.append(edges, -1)[next_edges] != columns)
    splits = columns[is_within]  # a run goes on in the next column

    def placed(places: NDArray[np.intp]) -> NDArray[np.intp]:
        column, row = np.divmod(places, part_height)
        return (column + left) * image_size_wh[1] + row + top

    starts = placed(np.append(edges[::2], splits))
    ends = placed(np.append(edges[1::2], splits) - 1) + 1
    return encode_edges(np.append(starts, ends), image_size_wh)


def _edges(mask: RunLengthMask) -> NDArray[np.intp]:
    """Return the starts and ends of the runs, alternately.

    A character has five bits of a number, lowest first, and a bit that more follow; the fifth bit
    of the last is its sign. From the fourth on, numbers are differences to the one before the last.
    Source: pycocotools 2.0, common/maskApi.c (rleFrString).
    """
    codes = np.frombuffer(mask.counts.encode("ascii"), dtype=np.uint8).astype(np.intp) - 48
    firsts = np.flatnonzero(np.append(True, codes[:-1] < 32))
    lasts = np.append(firsts[1:], len(codes)) - 1
    places = np.arange(len(codes)) - np.repeat(firsts, lasts - firsts + 1)
    counts = np.add.reduceat((codes & 31) << 5 * places, firsts)
    counts -= np.where(codes[lasts] & 16, 1 << 5 * (places[lasts] + 1), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    edges = np.cumsum(counts)
    return edges if len(edges) % 2 == 0 else edges[:-1]  # zeros reach the end


def unite_masks(masks: Sequence[RunLengthMask]) -> RunLengthMask:
    encoded = [{"size": list(mask.size_hw), "counts": mask.counts.encode()} for mask in masks]
    return _typed(coco.merge(encoded))


def _typed(encoded: Mapping[str, Any]) -> RunLengthMask:
    height, width = encoded["size"]
    return RunLengthMask((height, width), encoded["counts"].decode("ascii"))
