"""Boxes of a result, and the part of the image around one.

Pure geometry: coordinates are pixels, from the upper left corner.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from imaging.files import PixelBox
from service.analysis.steps import BoxOf
from tasks.parsing import bounding_box
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    InstancesResult,
    Result,
    TextRegionsResult,
    TextResult,
)

_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object of a result that a step may be asked about."""

    about: BoxOf
    score: float


def objects_of(result: Result) -> Iterator[FoundObject]:
    """Yield the objects of a result in its order; a text has none."""
    match result:
        case DetectionsResult(items) | InstancesResult(items):
            for item in items:
                yield FoundObject(BoxOf(item.box, {"label": item.label}), item.score)
        case TextRegionsResult(regions):
            for region in regions:
                box = bounding_box(region.quad) or _NO_BOX
                yield FoundObject(BoxOf(box, {"text": region.text}), region.score)
        case TextResult():
            return


def crop_around(box: BoxXyxy, margin: float, image_size_wh: tuple[int, int]) -> PixelBox:
    """Return the whole pixels of a box and its margin that lie in the image, at least one."""
    x1, y1, x2, y2 = box
    left, right = _side(x1, x2, margin, image_size_wh[0])
    top, bottom = _side(y1, y2, margin, image_size_wh[1])
    return left, top, right, bottom


def _side(start: float, end: float, margin: float, side_px: int) -> tuple[int, int]:
    margin_px = margin * (end - start)
    first = min(max(0, math.floor(start - margin_px)), side_px - 1)
    return first, max(first + 1, min(side_px, math.ceil(end + margin_px)))


def within(box: BoxXyxy, crop: PixelBox) -> BoxXyxy:
    """Return the part of a box that a crop shows, in pixels of the crop."""
    left, top, right, bottom = crop
    x1, x2 = (min(max(x, left), right) - left for x in (box[0], box[2]))
    y1, y2 = (min(max(y, top), bottom) - top for y in (box[1], box[3]))
    return x1, y1, x2, y2
