"""Intersection over union (IoU) of boxes, quads and masks.

Polygons and quads are rasterised by pycocotools.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

QUAD_GRID_PX = 1000

Points = Sequence[Sequence[float]]
RunLengths = Any  # COCO RLE of pycocotools: {"size": [H, W], "counts": bytes}


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the IoU of two boxes `x1, y1, x2, y2`; 0 if one has no area."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    intersection = width * height
    union = _area(first) + _area(second) - intersection
    return intersection / union if union > 0 else 0.0


def quad_iou(first: Points, second: Points, image_size_wh: tuple[int, int]) -> float:
    """Return the IoU of two quads, rasterised on a grid that is finer than a small image."""
    scale_x = QUAD_GRID_PX / image_size_wh[0]
    scale_y = QUAD_GRID_PX / image_size_wh[1]
    masks = []
    for quad in (first, second):
        scaled = [(x * scale_x, y * scale_y) for x, y in quad]
        masks.append(_rasterised([scaled], (QUAD_GRID_PX, QUAD_GRID_PX)))
    return _mask_iou(*masks)


def mask_iou(
    instances: Sequence[Mapping[str, Any]], rings: Sequence[Points], image_size_wh: tuple[int, int]
) -> float:
    """Return the IoU of all instances' union (polygons or COCO RLE) and all rings' union."""
    masks = []
    for instance in instances:
        if "mask" in instance:
            given = instance["mask"]
            masks.append({"size": given["size"], "counts": given["counts"].encode()})
        else:
            masks.append(_rasterised(instance["polygons"], image_size_wh))
    return _mask_iou(coco_mask.merge(masks), _rasterised(rings, image_size_wh)) if masks else 0.0


def _rasterised(rings: Sequence[Points], image_size_wh: tuple[int, int]) -> RunLengths:
    """Return the union of the rings; a ring of fewer than three points has no area."""
    width, height = image_size_wh
    closed = [ring for ring in rings if len(ring) >= 3]
    flat = [list(map(float, chain.from_iterable(ring))) for ring in closed]
    if not flat:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _mask_iou(first: RunLengths, second: RunLengths) -> float:
    """Return the IoU; 0 if the masks differ in size."""
    if list(first["size"]) != list(second["size"]):
        return 0.0
    return float(coco_mask.iou([first], [second], [False])[0][0])


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
