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

from shapely import Polygon, contains_xy

from service.inference.prediction import Answer
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    Instance,
    InstancesResult,
    PointXy,
    TextRegionsResult,
    TextResult,
)

JsonObject = dict[str, Any]

_UNLABELLED = "object"  # X-AnyLabeling requires a label
_TEXT_LABEL = "text"
_MIN_POINTS = 3  # per polygon


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
                yield _shape("rectangle", _corners(detection.box), detection.label, detection.score)
        case InstancesResult(instances=instances):
            for instance in instances:
                for points in _outlines(instance, epsilon_factor):
                    yield _shape("polygon", points, instance.label, instance.score)
        case TextRegionsResult(text_regions=regions):
            for each in regions:
                yield _shape("polygon", each.quad, _TEXT_LABEL, each.score) | {
                    "description": each.text
                }
        case TextResult(text=text) if region is not None:
            yield _shape("rectangle", _corners(region), text, None)


def _outlines(instance: Instance, epsilon_factor: float) -> Iterator[list[PointXy]]:
    rings = [Polygon(ring) for ring in instance.polygons or () if len(ring) >= _MIN_POINTS]
    for ring in rings:
        if sum(contains_xy(rings, *ring.exterior.coords[0])) % 2 == 0:
            simplified = ring.exterior.simplify(epsilon_factor * ring.length)
            yield [(x, y) for x, y in simplified.coords[:-1]]


def _corners(box: BoxXyxy) -> Sequence[PointXy]:
    x1, y1, x2, y2 = box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _shape(kind: str, points: Sequence[PointXy], label: str, score: float | None) -> JsonObject:
    return {
        "label": label or _UNLABELLED,
        "shape_type": kind,
        "points": [list(point) for point in points],
        "score": score,
    }
