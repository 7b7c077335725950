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
            corner = (image.width - 1, image.height - 1)
            x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, corner).astype(int).tolist()
            far = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (image.width, image.height))
            x2, y2 = far.astype(int).tolist()
            box_xyxy = (x1, y1, x2, y2)
            mask = masks[index][y1:y2, x1:x2]
        (x1, y1), (x2, y2) = _relative((box_xyxy[:2], box_xyxy[2:]), image)
        box = [x1, y1, x2 - x1, y2 - y1]
        found = {"label": name, "bounding_box": box, "confidence": score, "mask": mask}
        detections.append(labels.Detection(**found))
    return labels.Detections(detections=detections)


def fiftyone_polylines(
    image: ImageSize,
    rings: Sequence[Sequence[PointXy]],
    names: Sequence[str],
    scores: Sequence[float],
) -> Any:
    """Return `fiftyone.Polylines`, one closed line for each ring; raise `ImportError`."""
    labels = _fiftyone_labels()
    polylines = [
        labels.Polyline(
            label=name, points=[list(_relative(ring, image))], confidence=score, closed=True
        )
        for ring, name, score in zip(rings, names, scores, strict=True)
    ]
    return labels.Polylines(polylines=polylines)


def fiftyone_classification(text: str) -> Any:
    """Return `fiftyone.Classification`; raise `ImportError`."""
    return _fiftyone_labels().Classification(label=text)


def _fiftyone_labels() -> Any:
    try:
        return import_module("fiftyone.core.labels")
    except ImportError as error:
        raise ImportError("to_fiftyone() needs fiftyone: pip install fiftyone") from error


def _relative(points: Sequence[Sequence[float]], image: ImageSize) -> Iterator[PointXy]:
    for x, y in points:
        yield x / image.width, y / image.height
