"""Answers as COCO (cocodataset.org, data format): boxes, masks, text regions, or a caption."""

from itertools import chain
from typing import Any

import numpy as np

from diptych_client.geometry import ImageSize, polygons_mask, uncompressed_run_lengths
from diptych_client.results import (
    Answer,
    Detection,
    Instance,
    Item,
    TextRegion,
    TextResult,
    box_of,
    items_of,
    label_of,
)

UNNAMED = "object"  # class of boxes without a label


def coco_of(answer: Answer, file_name: str, image_id: int) -> dict[str, Any]:
    """Return a document of one image; ids count from 1, in order of first appearance."""
    size = {"width": answer.image.width, "height": answer.image.height}
    images = [{"id": image_id, "file_name": file_name, **size}]
    if isinstance(answer.result, TextResult):
        caption = {"id": 1, "image_id": image_id, "caption": answer.result.text}
        return {"images": images, "categories": [], "annotations": [caption]}
    items = items_of(answer.result)
    is_text = any(isinstance(item, TextRegion) for item in items)
    labels = ["text"] if is_text else dict.fromkeys(label_of(item) or UNNAMED for item in items)
    ids = {label: number for number, label in enumerate(labels, 1)}
    annotations = []
    for number, item in enumerate(items, 1):
        category = "text" if is_text else label_of(item) or UNNAMED
        own: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": ids[category]}
        annotations.append(own | coco_shape(item, answer.image))
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco_shape(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return box, area and segmentation: polygons, or run lengths where their union differs."""
    x1, y1, x2, y2 = box_of(item)
    shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": item.score, "iscrowd": 0}
    match item:
        case TextRegion():
            ring = list(chain.from_iterable(item.quad_xy))
            area = float(polygons_mask([item.quad_xy], image).sum())
            return shape | {"area": area, "segmentation": [ring], "text": item.text}
        case Detection():
            return shape | {"area": (x2 - x1) * (y2 - y1), "segmentation": []}
        case Instance():
            mask = item.to_mask(image)
            rings = item.polygons_xy or ()
            parts = [polygons_mask([each], image) for each in rings]
            segmentation: Any = [list(chain.from_iterable(each)) for each in rings]
            if not rings or not np.array_equal(mask, np.any(parts, axis=0)):
                segmentation = {"size": list(mask.shape), "counts": uncompressed_run_lengths(mask)}
            return shape | {"area": int(mask.sum()), "segmentation": segmentation}
