"""Objects as labels of FiftyOne.

Imports fiftyone when called: it is an optional dependency, and starts a database.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych_client.geometry import BoxXyxy, ImageSize, PointXy


def fiftyone_detections(
    image: ImageSize,
    boxes_xyxy: Sequence[BoxXyxy],
    names: Sequence[str],
    scores: Sequence[float],
    masks: NDArray[np.bool_] | None = None,  # (N, H, W)
) -> Any:
    """Return `fiftyone.Detections`, with boxes relative to the image as FiftyOne has them.

    A mask covers its box, which is widened to whole pixels. Raises `ImportError` if fiftyone is not
    installed.
    """
    labels = _fiftyone_labels()
    detections = []
    for index, (box_xyxy, name, score) in enumerate(zip(boxes_xyxy, names, scores, strict=True)):
        mask = None
        if masks is not None:
            box_xyxy, mask = _cropped(box_xyxy, masks[index])
        (x1, y1), (x2, y2) = _relative((box_xyxy[:2], box_xyxy[2:]), image)
        box = [x1, y1, x2 - x1, y2 - y1]
        detections.append(
            labels.Detection(label=name, bounding_box=box, confidence=score, mask=mask)
        )
    return labels.Detections(detections=detections)


def fiftyone_polylines(
    image: ImageSize,
    rings: Sequence[Sequence[PointXy]],
    names: Sequence[str],
    scores: Sequence[float],
) -> Any:
    """Return `fiftyone.Polylines`, one closed line for each ring.

    Raise `ImportError` if fiftyone is not installed.
    """
    labels = _fiftyone_labels()
    polylines = [
        labels.Polyline(
            label=name, points=[list(_relative(ring, image))], confidence=score, closed=True
        )
        for ring, name, score in zip(rings, names, scores, strict=True)
    ]
    return labels.Polylines(polylines=polylines)


def _fiftyone_labels() -> Any:
    try:
        return import_module("fiftyone.core.labels")
    except ImportError as error:
        raise ImportError("to_fiftyone() needs fiftyone: pip install fiftyone") from error


def _relative(points: Sequence[Sequence[float]], image: ImageSize) -> Iterator[PointXy]:
    for x, y in points:
        yield x / image.width, y / image.height


def _cropped(box_xyxy: BoxXyxy, mask: NDArray[np.bool_]) -> tuple[BoxXyxy, NDArray[np.bool_]]:
    """Return the box widened to whole pixels within the image, at least one, and the mask
    inside.
    """
    height, width = mask.shape
    x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, (width - 1, height - 1)).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (width, height)).astype(int).tolist()
    return (float(x1), float(y1), float(x2), float(y2)), mask[y1:y2, x1:x2]
