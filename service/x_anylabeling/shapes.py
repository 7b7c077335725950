"""Answers as X-AnyLabeling's shapes and description, in pixels.

| result | shapes |
| detections | a rectangle each |
| instances | a polygon for each outer ring: X-AnyLabeling's polygons have no holes |
| text_regions | a polygon of four points each, with its text as description |
| text | none: the description of the image; of a region, a rectangle with the text as label |

Source: CVHub520/X-AnyLabeling-Server@1a7814f docs/user_guide.md (Response Schema).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from service.inference.prediction import Answer
from service.schema.outlines import corners, outlines, simplified
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    InstancesResult,
    PointXy,
    TextRegionsResult,
    TextResult,
)

JsonObject = dict[str, Any]

_UNLABELLED = "object"  # X-AnyLabeling requires a label
_TEXT_LABEL = "text"


def shapes_json(answer: Answer, epsilon_factor: float, region: BoxXyxy | None) -> JsonObject:
    """Return the data of a call.

    Args:
        answer: has polygons if it has masks.
        epsilon_factor: tolerance of simplified polygons, as a share of their perimeter (OpenCV's
            approxPolyDP).
        region: the box that the answer describes.
    """
    if isinstance(answer.result, TextResult) and region is None:
        # True would delete the shapes
        return {"shapes": [], "description": answer.result.text, "replace": False}
    return {"shapes": list(_shapes(answer, epsilon_factor, region)), "description": ""}


def _shapes(answer: Answer, epsilon_factor: float, region: BoxXyxy | None) -> Iterator[JsonObject]:
    match answer.result:
        case DetectionsResult(detections=found):
            for detection in found:
                yield _shape("rectangle", corners(detection.box), detection.label, detection.score)
        case InstancesResult(instances=instances):
            for instance in instances:
                for ring in outlines(instance):
                    points = simplified(ring, epsilon_factor * ring.length)
                    yield _shape("polygon", points, instance.label, instance.score)
        case TextRegionsResult(text_regions=regions):
            for each in regions:
                yield _shape("polygon", each.quad, _TEXT_LABEL, each.score) | {
                    "description": each.text
                }
        case TextResult(text=text) if region is not None:
            yield _shape("rectangle", corners(region), text, None)


def _shape(kind: str, points: Sequence[PointXy], label: str, score: float | None) -> JsonObject:
    return {
        "label": label or _UNLABELLED,
        "shape_type": kind,
        "points": [list(point) for point in points],
        "score": score,
    }
