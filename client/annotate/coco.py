"""Records as a document of COCO's format (cocodataset.org, data format, object detection).

Boxes are [x, y, width, height]. A segmentation is a list of polygons, which COCO takes for their union, or run lengths
where the polygons mean something else, such as a hole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from client.annotate.classes import Box, boxes_of, class_name
from client.annotate.journal import Record
from client.masks import Mask, instance_mask, polygons_mask, uncompressed_run_lengths
from client.results import Detection, ImageSize, Instance


def coco_document(records: Sequence[Record], classes: Mapping[str, int]) -> dict[str, Any]:
    """Return images, categories and annotations, whose ids count from 1; `score` is the answer's."""
    annotations = [
        {"image_id": image_id, "category_id": classes[class_name(box)] + 1, **_shape(box, record.answer.image)}
        for image_id, record in enumerate(records, 1)
        for box in boxes_of(record.answer.result)
    ]
    return {
        "images": [{"id": image_id, **_image(record)} for image_id, record in enumerate(records, 1)],
        "categories": [{"id": index + 1, "name": name} for name, index in classes.items()],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }


def _image(record: Record) -> dict[str, Any]:
    size = record.answer.image
    return {"file_name": record.image.name, "width": size.width, "height": size.height}


def _shape(box: Box, image: ImageSize) -> dict[str, Any]:
    x1, y1, x2, y2 = box.box_xyxy
    shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": box.score, "iscrowd": 0}
    if isinstance(box, Detection):
        return shape | {"area": (x2 - x1) * (y2 - y1), "segmentation": []}
    mask = instance_mask(box, image)
    return shape | {"area": int(mask.sum()), "segmentation": _segmentation(box, mask, image)}


def _segmentation(instance: Instance, mask: Mask, image: ImageSize) -> Any:
    rings = instance.polygons_xy or ()
    if rings and np.array_equal(mask, np.any([polygons_mask([ring], image) for ring in rings], axis=0)):
        return [[coordinate for point in ring for coordinate in point] for ring in rings]
    return {"size": list(mask.shape), "counts": uncompressed_run_lengths(mask)}
