"""Results as `supervision.Detections`. supervision is imported when it is asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.masks import instance_mask
from client.results import (
    BoxXyxy,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    Result,
    Ring,
    TextRegionsResult,
    TextResult,
)

if TYPE_CHECKING:
    import supervision


def detections_of(result: Result, image: ImageSize) -> "supervision.Detections":
    """Return boxes, scores, labels and masks; of text regions the boxes around the quads, and the quads as data."""
    match result:
        case DetectionsResult(found):
            return _detections([(d.box_xyxy, d.label, d.score) for d in found])
        case InstancesResult(found):
            return _detections([(i.box_xyxy, i.label, i.score) for i in found], mask=_masks(found, image))
        case TextRegionsResult(found):
            return _detections([(bounding_box(r.quad_xy), r.text, r.score) for r in found], [r.quad_xy for r in found])
        case TextResult():
            raise ValueError("a text has no boxes; supervision's Detections are for results with boxes")


def bounding_box(points_xy: Ring) -> BoxXyxy:
    """Return the smallest box around points."""
    xs, ys = zip(*points_xy, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _detections(
    rows: Sequence[tuple[BoxXyxy, str, float]],
    quads_xy: Sequence[Ring] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> "supervision.Detections":
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision() needs supervision: pip install supervision") from error
    names = [label for _, label, _ in rows]
    class_ids = {name: index for index, name in enumerate(dict.fromkeys(names))}
    data: dict[str, NDArray[np.generic] | list[object]] = {"class_name": np.array(names, dtype=str)}
    if quads_xy is not None:
        data["xyxyxyxy"] = np.array(quads_xy, dtype=np.float32).reshape(-1, 4, 2)
    return supervision.Detections(
        xyxy=np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
        mask=mask,
        confidence=np.array([score for _, _, score in rows], dtype=np.float32),
        class_id=np.array([class_ids[name] for name in names], dtype=int),
        data=data,
    )


def _masks(instances: Sequence[Instance], image: ImageSize) -> NDArray[np.bool_]:
    """Return the masks (N, H, W)."""
    masks = np.zeros((len(instances), image.height, image.width), dtype=np.bool_)
    for index, instance in enumerate(instances):
        masks[index] = instance_mask(instance, image)
    return masks
