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
    """Return the mask (H, W) of run lengths."""
    encoded = {"size": list(mask.size_hw), "counts": mask.counts.encode("ascii")}
    decoded: NDArray[np.uint8] = coco.decode(encoded)
    return decoded.astype(np.bool_)


def _typed(encoded: Mapping[str, Any]) -> RunLengthMask:
    height, width = encoded["size"]
    return RunLengthMask((height, width), encoded["counts"].decode("ascii"))
