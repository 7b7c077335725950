"""Merges what a model found in several views of one image: the whole image and its tiles.

Each object is returned once, in pixels of the image. A part of an object is joined with the part on
the other side of an inner edge that cuts both: masks as their union, a line of text as one line.
Of the boxes of one object the one that no inner edge cuts is kept, then the one with the best
score; of the readings of a line, the one with the most characters that are right by its score. A
part within a box that is not cut is dropped whatever its label: a model names a part of a circle
otherwise. So is a cut box whose place another tile sees whole, and a cut line if that tile has one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from operator import attrgetter

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.results import (
    BoxXyxy,
    Detection,
    FoundObject,
    Instance,
    PointXy,
    Result,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
    with_objects,
)
from tasks.run_length import place_mask, unite_masks
from tasks.tiles.grid import PixelBox
from tasks.tiles.words import joined_line, merged_text, reading_order

MAX_OBJECTS = 20_000  # found in all views; that many take a second
# A box that ends this close to an inner edge is cut by it: models place edges that exactly.
_EDGE_SHARE = 0.02  # share of a tile's longer side
_MIN_IOU = 0.5
_MIN_COVERED = 0.8  # share of the smaller box
_MIN_PART = 0.5  # share of a cut box
_MIN_LINE = 0.25  # share of the smaller box; lines above each other have less in common
_MIN_ACROSS = 0.5  # IoU of two parts along the edge that cuts both
_MIN_AREA_RATIO = 0.25  # a whole object within another one that is larger than that is another one
_BLOCK = 64  # boxes that are looked up together: their neighbours are in memory
# Its labels are captions: two views describe one object in different words.
_TASK_OF_CAPTIONS = "dense_region_captioning"
_MIN_POINTS = 3  # a ring's

_X = 0
_Y = 1

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


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


@dataclass(frozen=True, slots=True)
class FoundBox:
    """The box of an object, of a part of it, or of joined parts."""

    item: FoundObject
    box: BoxXyxy
    label: str  # '' if boxes are compared with all others
    views: frozenset[int]  # 0 is the whole image
    cut: tuple[bool, bool, bool, bool]  # sides that an inner edge cuts: left, top, right, bottom
    view_box: PixelBox  # its view, or the box around the views of its parts
    is_joined: bool = False


def merge(task_id: str, views: Sequence[View], image_size_wh: tuple[int, int]) -> Merged:
    """Return the result of all views; the first one is the whole image, the others its tiles."""
    whole = views[0].result
    is_parsed = all(map(attrgetter("result.is_parsed"), views))
    if isinstance(whole, TextResult):
        rows: dict[int, dict[int, str]] = {}
        for view in views[1:]:
            if isinstance(view.result, TextResult):
                left, top, _, _ = view.box
                rows.setdefault(top, {})[left] = view.result.text
        return Merged(TextResult(merged_text(whole.text, [*rows.values()]), is_parsed), 0)
    objects, *counts = _merged_objects(task_id, views, image_size_wh)
    if isinstance(whole, TextRegionsResult):
        lines = reading_order([item.box for item in objects])
        if task_id == "ocr":
            texts = [item.label for item in objects]
            text = "\n".join(" ".join(map(texts.__getitem__, line)) for line in lines)
            return Merged(TextResult(text, is_parsed), *counts)
        objects = [objects[index] for index in chain(*lines)]
    return Merged(replace(with_objects(whole, objects), is_parsed=is_parsed), *counts)


def _merged_objects(
    task_id: str, views: Sequence[View], image_size_wh: tuple[int, int]
) -> tuple[list[FoundObject], int, int]:
    """Return the objects of all views, each once, how many are merged, and how many too many."""
    tiles = [view.box for view in views[1:]]
    sides_px = np.ptp(np.reshape(tiles, (-1, 2, 2)), axis=1)
    slack_px = _EDGE_SHARE * float(sides_px.max(initial=0))
    boxes: list[FoundBox] = []
    for index, view in enumerate(views):
        for item in view.result.items:
            box = item.box
            is_named = not isinstance(item, TextRegion) and task_id != _TASK_OF_CAPTIONS
            label = item.label if is_named else ""
            cut = cut_sides(box, view.box, image_size_wh, slack_px)
            boxes.append(FoundBox(item, box, label, frozenset({index}), cut, view.box))
    num_too_many = max(0, len(boxes) - MAX_OBJECTS)
    if num_too_many:
        surest = sorted(range(len(boxes)), key=lambda index: -boxes[index].item.rank)
        boxes = [boxes[index] for index in sorted(surest[:MAX_OBJECTS])]
    num_found = len(boxes)
    is_text = isinstance(views[0].result, TextRegionsResult)
    if is_text:
        lines = [box for box in boxes if 0 not in box.views]
        of_whole = boxes[: len(boxes) - len(lines)]
        boxes = of_whole + [lines[index] for index in survivors(lines, is_text)]
    else:
        are_seen = seen_whole(boxes, tiles, image_size_wh, slack_px)
        boxes = [boxes[index] for index in np.flatnonzero(~are_seen)]
    objects: list[FoundBox] = []
    for group in parts_of_objects(boxes, slack_px, is_text):
        objects.append(joined([boxes[index] for index in group]))
    merged = [objects[index].item for index in survivors(objects, is_text)]
    return merged, num_found - len(merged), num_too_many


def cut_sides(
    box: BoxXyxy, view: PixelBox, image_size_wh: tuple[int, int], slack_px: float
) -> tuple[bool, bool, bool, bool]:
    """Return which sides of a box end at an edge of its view within the image."""
    width, height = image_size_wh
    return (
        view[0] > 0 and box[0] <= view[0] + slack_px,
        view[1] > 0 and box[1] <= view[1] + slack_px,
        view[2] < width and box[2] >= view[2] - slack_px,
        view[3] < height and box[3] >= view[3] - slack_px,
    )


def seen_whole(
    boxes: Sequence[FoundBox],
    tiles: Sequence[PixelBox],
    image_size_wh: tuple[int, int],
    slack_px: float,
) -> Flags:
    """Return which boxes that an inner edge cuts are within a tile, off its inner edges."""
    arrays = BoxArrays.of(boxes)
    size = np.asarray(image_size_wh)
    are_seen = np.zeros(len(boxes), dtype=np.bool_)
    for tile in tiles:
        start = np.asarray(tile[:2])
        end = np.asarray(tile[2:])
        # an edge of the image cuts nothing
        starts_inside = (arrays.low > start + slack_px) | ((start == 0) & (arrays.low >= 0))
        ends_inside = (arrays.high < end - slack_px) | ((end == size) & (arrays.high <= size))
        are_seen |= (starts_inside & ends_inside).all(axis=1)
    return are_seen & arrays.are_cut.any(axis=1)


def parts_of_objects(boxes: Sequence[FoundBox], slack_px: float, is_text: bool) -> list[list[int]]:
    """Return the indices of the boxes in groups, each the parts of one object, mostly one.

    A group has at most one part of each view; the parts that fit best come first. A line of text
    continues to the left and right only. Its parts may end at a word before the edge: they overlap.
    """
    arrays = BoxArrays.of(boxes)
    may_overlap = np.asarray([is_text and 0 not in box.views for box in boxes], dtype=np.bool_)
    pairs = arrays.continuations(_X, slack_px, may_overlap)
    if not is_text:
        pairs = np.concatenate([pairs, arrays.continuations(_Y, slack_px, may_overlap)])
    best_first = np.lexsort(pairs.T[::-1])[::-1]
    groups = {index: [index] for index in range(len(boxes))}  # key: the first part
    views = list(map(attrgetter("views"), boxes))  # key: the first part, too
    first_parts = list(groups)
    for one, other in pairs[best_first, 1:].astype(np.intp).tolist():
        first = first_parts[one]
        second = first_parts[other]
        if views[first].isdisjoint(views[second]):
            views[first] |= views[second]
            for index in groups[second]:
                first_parts[index] = first
            groups[first] += groups.pop(second)
    return list(groups.values())


def joined(parts: Sequence[FoundBox]) -> FoundBox:
    if len(parts) == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: part.box)
    left = min(parts, key=lambda part: part.box[0])
    top = min(parts, key=lambda part: part.box[1])
    right = max(parts, key=lambda part: part.box[2])
    bottom = max(parts, key=lambda part: part.box[3])
    box = (left.box[0], top.box[1], right.box[2], bottom.box[3])
    cut = (left.cut[0], top.cut[1], right.cut[2], bottom.cut[3])
    views = frozenset[int]().union(*map(attrgetter("views"), parts))
    item = _joined_object(list(map(attrgetter("item"), parts)), box)
    view_box = (left.view_box[0], top.view_box[1], right.view_box[2], bottom.view_box[3])
    return FoundBox(item, box, parts[0].label, views, cut, view_box, is_joined=True)


def _joined_object(parts: Sequence[FoundObject], box: BoxXyxy) -> FoundObject:
    """Return the object of parts that are in order from left to right."""
    first = parts[0]
    least_sure = min(parts, key=lambda item: item.rank)
    if isinstance(first, TextRegion):
        return reduce(_joined_lines, [part for part in parts if isinstance(part, TextRegion)])
    if isinstance(first, Instance):
        mask = first.mask and unite_masks(list(map(attrgetter("mask"), parts)))
        polygons = first.polygons
        if polygons is not None:
            polygons = unite_rings(list(map(attrgetter("polygons"), parts)))
        return replace(first, box=box, score=least_sure.rank, polygons=polygons, mask=mask)
    assert isinstance(first, Detection)
    return replace(first, box=box, score=least_sure.score)


def _joined_lines(left: TextRegion, right: TextRegion) -> TextRegion:
    x1, _, x2, _ = left.box
    x3, _, x4, _ = right.box
    num_common_chars = (x2 - x3) / (x2 - x1 + x4 - x3) * len(left.text + right.text)
    top_left, _, _, bottom_left = left.quad
    _, top_right, bottom_right, _ = right.quad
    quad = (top_left, top_right, bottom_right, bottom_left)
    text = joined_line(left.text, right.text, num_common_chars)
    return TextRegion(quad, text, min(left.score, right.score))


def survivors(boxes: Sequence[FoundBox], is_text: bool) -> list[int]:
    """Return the indices of the boxes that are kept, one for each object, in order."""

    def rank(index: int) -> tuple[bool, bool, float]:
        box = boxes[index]
        if isinstance(box.item, TextRegion):
            return False, False, -box.item.score * len(box.item.text)
        return any(box.cut), box.is_joined, -box.item.rank  # a view that saw all is better

    order = sorted(range(len(boxes)), key=rank)
    arrays = BoxArrays.of([boxes[index] for index in order])
    are_masks = any(isinstance(box.item, Instance) for box in boxes)
    are_kept = np.ones(len(boxes), dtype=np.bool_)
    for better, worse in near_pairs(arrays.low, arrays.high, are_kept):
        are_duplicates = arrays.are_duplicates(better, worse)
        if is_text:
            are_same = are_duplicates | arrays.are_parts_of_lines(worse, better)
        else:
            are_same = are_duplicates | arrays.are_parts(worse, better, are_masks)
        # Two boxes without names in one view are two objects: the model distinguished them
        are_duplicates &= arrays.labels[better] > 0
        rows = np.column_stack([better, worse, are_duplicates])[are_same]
        for one, other, is_duplicate in rows.tolist():
            views = boxes[order[one]].views
            if are_kept[one] and (is_duplicate or views.isdisjoint(boxes[order[other]].views)):
                are_kept[other] = False
    return sorted(order[index] for index in np.flatnonzero(are_kept))


def near_pairs(low: Floats, high: Floats, are_kept: Flags) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs of boxes that overlap or touch, a block at a time, sorted by the first of a pair.

    The second one comes after it. A box that the caller no longer keeps is in no later block.
    """
    tree = shapely.STRtree(shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
    for start in range(0, len(low), _BLOCK):
        block = start + np.flatnonzero(are_kept[start : start + _BLOCK])
        inputs, others = tree.query(tree.geometries[block])
        ones = block[inputs]
        is_pair = (others > ones) & are_kept[others]
        yield ones[is_pair], others[is_pair]


@dataclass(frozen=True, slots=True)
class BoxArrays:
    """Boxes as columns, for comparisons of many pairs."""

    low: Floats  # (N, 2)
    high: Floats  # (N, 2)
    areas: Floats
    labels: Floats  # equal for equal labels, 0 for ''
    are_cut: Flags  # (N, 4)
    view_boxes: Floats  # (N, 4)

    @classmethod
    def of(cls, boxes: Sequence[FoundBox]) -> "BoxArrays":
        numbers = {"": 0}
        rows: list[tuple[float, ...]] = []
        for box in boxes:
            label = numbers.setdefault(box.label, len(numbers))
            rows.append((*box.box, label, *box.cut, *box.view_box))
        columns = np.asarray(rows, dtype=np.float64).reshape(-1, 13)
        low = columns[:, :2]
        high = columns[:, 2:4]
        areas = (high - low).prod(axis=1)
        return cls(low, high, areas, columns[:, 4], columns[:, 5:9] > 0, columns[:, 9:])

    def continuations(self, axis: int, slack_px: float, may_overlap: Flags) -> Floats:
        """Return the pairs of a box and one that begins before its end and goes on beyond, (N, 3).

        A row is how well both fit along the edge that cuts them, and their indices.
        """
        across = 1 - axis
        reached = self.high.copy()
        reached[:, axis] += 2 * slack_px
        are_cut = self.are_cut[:, axis] | self.are_cut[:, axis + 2] | may_overlap
        continuations = [np.empty((0, 3))]
        for pair in near_pairs(self.low, reached, are_cut):
            for one, other in (pair, pair[::-1]):
                goes_on = self.are_cut[one, axis + 2] & self.are_cut[other, axis]
                are_beside = self.low[other, axis] < self.high[one, axis]
                goes_on |= may_overlap[one] & may_overlap[other] & are_beside
                goes_on &= self.low[other, axis] > self.low[one, axis]
                goes_on &= self.high[other, axis] > self.high[one, axis]
                goes_on &= self.low[other, axis] <= reached[one, axis]
                goes_on &= self.labels[other] == self.labels[one]
                low = self.low[:, across]
                high = self.high[:, across]
                shared = np.minimum(high[one], high[other]) - np.maximum(low[one], low[other])
                either = np.maximum(high[one], high[other]) - np.minimum(low[one], low[other])
                goes_on &= (shared >= _MIN_ACROSS * either) & (either > 0)
                rows = np.column_stack([shared, one, other])[goes_on]
                rows[:, 0] /= either[goes_on]
                continuations.append(rows)
        return np.concatenate(continuations)

    def shared_areas(self, one: Indices, other: Indices) -> Floats:
        ends = np.minimum(self.high[one], self.high[other])
        starts = np.maximum(self.low[one], self.low[other])
        shared: Floats = np.clip(ends - starts, 0, None).prod(axis=1)
        shared[shared == 0] = -1  # so that a box without an area has no share of another one
        return shared

    def are_duplicates(self, one: Indices, other: Indices) -> Flags:
        shared = self.shared_areas(one, other)
        is_same: Flags = self.labels[one] == self.labels[other]
        return is_same & (shared >= _MIN_IOU * (self.areas[one] + self.areas[other] - shared))

    def are_parts(self, parts: Indices, wholes: Indices, are_masks: bool) -> Flags:
        """Return which boxes are parts of others, which no inner edge cuts."""
        shared = self.shared_areas(parts, wholes)
        areas = self.areas[parts]
        is_cut = self.are_cut[parts].any(axis=1)
        is_covered = shared >= _MIN_COVERED * areas
        is_part = is_covered & (areas >= _MIN_AREA_RATIO * self.areas[wholes])
        is_part |= (shared >= _MIN_PART * areas) & (is_cut | are_masks)  # a phrase is one object
        is_part &= self.labels[parts] == self.labels[wholes]
        is_part |= is_covered & is_cut  # a part looks like something else
        return np.logical_and(is_part, ~self.are_cut[wholes].any(axis=1))

    def are_parts_of_lines(self, parts: Indices, lines: Indices) -> Flags:
        """Return which lines have the place of others, or are cut where another view has a line."""
        shared = self.shared_areas(parts, lines)
        is_seen = self.low[parts] >= self.view_boxes[lines, :2]
        is_seen &= self.high[parts] <= self.view_boxes[lines, 2:]
        is_part = is_seen.all(axis=1) & self.are_cut[parts].any(axis=1)
        smaller_areas = np.minimum(self.areas[parts], self.areas[lines])
        is_part &= ~self.are_cut[lines].any(axis=1) & (shared >= _MIN_LINE * smaller_areas)
        return np.logical_or(is_part, shared >= _MIN_COVERED * smaller_areas)


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
                outlines.append(tuple((x, y) for x, y in outline.coords[:-1]))
    return tuple(outlines)


def placed(result: Result, crop: PixelBox, image_size_wh: tuple[int, int]) -> Result:
    """Return a crop's result in pixels of the whole image."""
    left, top, _, _ = crop

    def moved(point: PointXy) -> PointXy:
        return point[0] + left, point[1] + top

    objects: list[FoundObject] = []
    for item in result.items:
        if isinstance(item, TextRegion):
            first, second, third, fourth = map(moved, item.quad)
            objects.append(replace(item, quad=(first, second, third, fourth)))
            continue
        x1, y1, x2, y2 = item.box
        whole = replace(item, box=(x1 + left, y1 + top, x2 + left, y2 + top))
        if isinstance(whole, Instance) and whole.polygons is not None:
            whole = replace(whole, polygons=tuple(tuple(map(moved, r)) for r in whole.polygons))
        if isinstance(whole, Instance) and whole.mask is not None:
            whole = replace(whole, mask=place_mask(whole.mask, (left, top), image_size_wh))
        objects.append(whole)
    return with_objects(result, objects)
