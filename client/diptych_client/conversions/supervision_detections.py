"""Boxes and masks as `supervision.Detections`.

Imports supervision when called: it is an optional dependency.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diptych_client.geometry import BoxXyxy, QuadXy

if TYPE_CHECKING:
    import supervision


def supervision_detections(
    boxes_xyxy: Sequence[BoxXyxy],
    names: Sequence[str],
    scores: Sequence[float],
    masks: NDArray[np.bool_] | None = None,  # (N, H, W)
    quads_xy: Sequence[QuadXy] | None = None,
    text: str | None = None,
) -> "supervision.Detections":
    """Return detections whose class ids number the names in order of first appearance.

    Quads are in `data["xyxyxyxy"]`, (N, 4, 2). Raises `ImportError` if supervision is not
    installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision() needs supervision: pip install supervision") from error
    class_ids = {name: index for index, name in enumerate(dict.fromkeys(names))}
    data: dict[str, NDArray[np.generic] | list[object]] = {"class_name": np.array(names, dtype=str)}
    if quads_xy is not None:
        data["xyxyxyxy"] = np.array(quads_xy, dtype=np.float32).reshape(-1, 4, 2)
    return supervision.Detections(
        xyxy=np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4),
        mask=masks,
        confidence=np.array(scores, dtype=np.float32),
        class_id=np.array([class_ids[name] for name in names], dtype=int),
        data=data,
        metadata={} if text is None else {"text": text},
    )
