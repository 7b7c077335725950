"""Results as the REST API writes them, made from the truth."""

from collections.abc import Sequence
from typing import Any

from laboratory.questions import DetectionsTruth, InstancesTruth, TextRegionsTruth, TextTruth, Truth


def detection(label: str, box: Sequence[float], score: float = 0.9) -> dict[str, Any]:
    return {"label": label, "box": list(box), "score": score}


def true_result(truth: Truth) -> dict[str, Any]:
    """Return the result that says exactly the truth."""
    match truth:
        case TextTruth():
            return {"text": truth.text}
        case DetectionsTruth():
            return {"detections": [detection(box.label, box.box_xyxy) for box in truth.boxes]}
        case InstancesTruth():
            return {"instances": [{"polygons": [outline]} for outline in truth.outlines]}
        case TextRegionsTruth():
            return {
                "text_regions": [
                    {"text": word.text, "quad": word.quad_xy} for word in truth.text_regions
                ]
            }


def wrong_result(truth: Truth) -> dict[str, Any]:
    """Return a result of the same kind in which nothing is true."""
    match truth:
        case TextTruth():
            return {"text": "something else"}
        case DetectionsTruth():
            return {"detections": [detection("something else", (0, 0, 1, 1))]}
        case InstancesTruth():
            return {"instances": []}
        case TextRegionsTruth():
            return {
                "text_regions": [
                    {"text": "something else", "quad": ((0, 0), (1, 0), (1, 1), (0, 1))}
                ]
            }
