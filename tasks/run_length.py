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


def place_mask(
    mask: RunLengthMask, left_top: tuple[int, int], image_size_wh: tuple[int, int]
) -> RunLengthMask:
    """Return the mask of a part of an image as that of the image, without its pixels."""
    width, height = image_size_wh
    left, top = left_top
    columns = np.pad(decode_mask(mask).T, ((0, 0), (1, 1)))  # (W, 1 + H + 1)
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    # A run that fills a column ends where the next begins: both are left out
    edges, num_runs = np.unique((column + left) * height + row + top, return_counts=True)
    starts_and_ends = [0, *edges[num_runs == 1].tolist(), width * height]
    counts = np.diff(starts_and_ends).tolist()
    return _typed(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def unite_masks(masks: Sequence[RunLengthMask]) -> RunLengthMask:
    encoded = [{"size": list(mask.size_hw), "counts": mask.counts.encode()} for mask in masks]
    return _typed(coco.merge(encoded))


def _typed(encoded: Mapping[str, Any]) -> RunLengthMask:
    height, width = encoded["size"]
    return RunLengthMask((height, width), encoded["counts"].decode("ascii"))
