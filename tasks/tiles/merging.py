"""Merges what a model found in several views of one image: the whole image and its tiles.

Each object is returned once, in pixels of the image: boxes by `tasks/tiles/boxes.py`, masks of an
object that a seam divides as their union, a line of text across a seam as one line. The score of
joined parts is that of the least sure one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import shapely

from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    PointXy,
    Result,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import place_mask, unite_masks
from tasks.scores import box_of
from tasks.tiles.boxes import (
    EDGE_SHARE,
    NEAR_SHARE,
    FoundBox,
    cut_sides,
    joined,
    moved_parts,
    parts_of_objects,
    seen_whole,
    survivors,
)
from tasks.tiles.grid import PixelBox
from tasks.tiles.words import joined_line, merged_text, reading_order

ItemT = TypeVar("ItemT", Detection, Instance, TextRegion)

MAX_OBJECTS = 20_000  # found in all views; that many take a second
# Its labels are captions: two views describe one object in different words.
_TASK_OF_CAPTIONS = "dense_region_captioning"
_MIN_POINTS = 3  # a ring's


@dataclass(frozen=True, slots=True)
class View:
    """A part of the image, and what a model found in it, in pixels of the image."""

    box: PixelBox
    result: Result


@dataclass(frozen=True, slots=True)
class Merged:
    """The result about the image, and how many objects of the views are not in it."""

    result: Result
    num_merged: int
    num_left_out: int = 0  # the least sure of more than `MAX_OBJECTS`


def merge(task_id: str, views: Sequence[View], image_size_wh: tuple[int, int]) -> Merged:
    """Return the result of all views; the first one is the whole image, the others its tiles."""
    results = [view.result for view in views]
    is_parsed = all(result.is_parsed for result in results)
    merging = _Merging(views, image_size_wh, task_id)
    match results[0]:
        case DetectionsResult():
            detections = [
                result.detections for result in results if isinstance(result, DetectionsResult)
            ]
            merged_detections, *counts = merging.merged(detections)
            return Merged(DetectionsResult(merged_detections, is_parsed), *counts)
        case InstancesResult():
            masks = [result.instances for result in results if isinstance(result, InstancesResult)]
            instances, *counts = merging.merged(masks)
            return Merged(InstancesResult(instances, is_parsed), *counts)
        case TextRegionsResult():
            texts = [
                result.text_regions for result in results if isinstance(result, TextRegionsResult)
            ]
            regions, *counts = merging.merged(texts)
            lines = reading_order([box_of(region) for region in regions])
            if task_id == "ocr":
                texts_of_lines = [_text(regions, line) for line in lines]
                return Merged(TextResult("\n".join(texts_of_lines), is_parsed), *counts)
            ordered = tuple(regions[index] for index in chain(*lines))
            return Merged(TextRegionsResult(ordered, is_parsed), *counts)
        case TextResult(whole):
            rows: dict[int, dict[int, str]] = {}
            for view in views[1:]:
                if isinstance(view.result, TextResult):
                    left, top, _, _ = view.box
                    rows.setdefault(top, {})[left] = view.result.text
            return Merged(TextResult(merged_text(whole, list(rows.values())), is_parsed), 0)


@dataclass(frozen=True, slots=True)
class _Merging:
    views: Sequence[View]
    image_size_wh: tuple[int, int]
    task_id: str

    def merged(self, items: Sequence[Sequence[ItemT]]) -> tuple[tuple[ItemT, ...], int, int]:
        """Return the objects of all views, each once.

        Then how many of `items` are left out because of another one, and how many as too many.
        """
        size_wh = self.image_size_wh
        views = [view.box for view in self.views]
        sides_px = [max(right - left, bottom - top) for left, top, right, bottom in views[1:]]
        tile_px = max(sides_px, default=0)
        slack_px = EDGE_SHARE * tile_px
        of_views: list[tuple[int, ItemT]] = []
        for index, of_view in enumerate(items):
            of_views += [(index, item) for item in of_view]
        surest = sorted(range(len(of_views)), key=lambda number: -of_views[number][1].score)
        found_boxes: list[FoundBox] = []
        flat: list[ItemT] = []
        for number in sorted(surest[:MAX_OBJECTS]):
            index, item = of_views[number]
            box = box_of(item)
            cut = cut_sides(box, views[index], size_wh, slack_px)
            found_boxes.append(
                FoundBox(box, self._label(item), item.score, frozenset({index}), cut)
            )
            flat.append(item)
        num_found = len(found_boxes)
        is_text = any(isinstance(item, TextRegion) for item in flat)
        are_parts = np.zeros(num_found, dtype=np.bool_)
        if not is_text:
            are_parts |= moved_parts(found_boxes, views, size_wh, NEAR_SHARE * tile_px)
            are_parts |= seen_whole(found_boxes, views[1:], size_wh, slack_px)
        others = np.flatnonzero(~are_parts).tolist()
        found_boxes = [found_boxes[index] for index in others]
        flat = [flat[index] for index in others]
        boxes: list[FoundBox] = []
        joined_items: list[ItemT] = []
        for group in parts_of_objects(found_boxes, slack_px, is_text):
            parts = sorted(group, key=lambda index: found_boxes[index].box)
            box_of_parts = joined([found_boxes[index] for index in parts])
            boxes.append(box_of_parts)
            joined_items.append(joined_item([flat[index] for index in parts], box_of_parts))
        survivors_of_views = tuple(joined_items[index] for index in survivors(boxes, is_text))
        return survivors_of_views, num_found - len(survivors_of_views), len(of_views) - num_found

    def _label(self, item: Detection | Instance | TextRegion) -> str:
        if isinstance(item, TextRegion) or self.task_id == _TASK_OF_CAPTIONS:
            return ""
        return item.label


def _text(regions: Sequence[TextRegion], line: Sequence[int]) -> str:
    return " ".join(regions[index].text for index in line)


def joined_item(parts: Sequence[ItemT], box: FoundBox) -> ItemT:
    """Return the object of parts that are in order from left to right."""
    first = parts[0]
    last = parts[-1]
    if len(parts) == 1:
        return first
    if isinstance(first, TextRegion) and isinstance(last, TextRegion):
        text = first.text
        for part in parts[1:]:
            text = joined_line(text, part.text)
        top_left, _, _, bottom_left = first.quad
        _, top_right, bottom_right, _ = last.quad
        quad = (top_left, top_right, bottom_right, bottom_left)
        return replace(first, quad=quad, text=text, score=box.score)
    if isinstance(first, Instance):
        masks = [part.mask for part in parts if part.mask is not None]
        rings = [part.polygons for part in parts if part.polygons is not None]
        mask = unite_masks(masks) if masks else None
        polygons = unite_rings(rings) if rings else None
        return replace(first, box=box.box, score=box.score, polygons=polygons, mask=mask)
    return replace(first, box=box.box, score=box.score)


def unite_rings(shapes: Sequence[tuple[Ring, ...]]) -> tuple[Ring, ...]:
    """Return the outlines of the union of shapes, each given by rings with the even-odd rule."""
    united: list[shapely.Geometry] = []
    for rings in shapes:
        shape: shapely.Geometry = shapely.Polygon()
        for ring in rings:
            if len(ring) >= _MIN_POINTS:
                filled = shapely.make_valid(shapely.Polygon(ring))
                shape = shapely.symmetric_difference(shape, filled)
        united.append(shape)
    outlines: list[Ring] = []
    for part in shapely.get_parts(shapely.unary_union(united)):
        if isinstance(part, shapely.Polygon):
            for outline in (part.exterior, *part.interiors):
                points = tuple((x, y) for x, y in outline.coords[:-1])
                outlines.append(points)
    return tuple(outlines)


def placed(result: Result, crop: PixelBox, image_size_wh: tuple[int, int]) -> Result:
    """Return a crop's result in pixels of the whole image."""
    left, top, _, _ = crop

    def moved(point: PointXy) -> PointXy:
        return point[0] + left, point[1] + top

    def moved_box(box: BoxXyxy) -> BoxXyxy:
        return box[0] + left, box[1] + top, box[2] + left, box[3] + top

    def placed_detection(item: Detection) -> Detection:
        return replace(item, box=moved_box(item.box))

    def placed_instance(item: Instance) -> Instance:
        rings = item.polygons
        polygons = None if rings is None else tuple(tuple(map(moved, ring)) for ring in rings)
        mask = None if item.mask is None else place_mask(item.mask, (left, top), image_size_wh)
        return replace(item, box=moved_box(item.box), polygons=polygons, mask=mask)

    def placed_region(item: TextRegion) -> TextRegion:
        first, second, third, fourth = map(moved, item.quad)
        return replace(item, quad=(first, second, third, fourth))

    match result:
        case DetectionsResult():
            return replace(result, detections=tuple(map(placed_detection, result.detections)))
        case InstancesResult():
            return replace(result, instances=tuple(map(placed_instance, result.instances)))
        case TextRegionsResult():
            return replace(result, text_regions=tuple(map(placed_region, result.text_regions)))
        case TextResult():
            return result
