"""Boxes that several views found: which are parts of one object, and which are the same object.

A part is joined with the one on the other side of an inner edge that cuts both. Of the boxes of one
object the one that no inner edge cuts is kept, then the one with the best score. Two boxes of one
view are never the same object: the model distinguished them. A part within a box that is not cut
is dropped whatever its label: a model names a part of a circle otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from tasks.results import BoxXyxy
from tasks.tiles.grid import PixelBox

# A box that ends this close to an inner edge is cut by it: models place edges that exactly.
EDGE_SHARE = 0.02  # share of a tile's longer side
_MIN_IOU = 0.5
_MIN_COVERED = 0.8  # share of the smaller box
_MIN_ACROSS = 0.5  # IoU of two parts along the edge that cuts both
MIN_AREA_RATIO = 0.25  # a whole object within another one that is larger than that is another one
_BLOCK = 64  # boxes that are looked up together: their neighbours are in memory

_X = 0
_Y = 1

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class FoundBox:
    """The box of an object, of a part of it, or of joined parts."""

    box: BoxXyxy
    label: str  # '' if boxes are compared with all others
    score: float
    views: frozenset[int]  # 0 is the whole image
    cut: tuple[bool, bool, bool, bool]  # sides that an inner edge cuts: left, top, right, bottom
    is_joined: bool = False

    @property
    def is_cut(self) -> bool:
        return any(self.cut)


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


def parts_of_objects(found: Sequence[FoundBox], slack_px: float, is_text: bool) -> list[list[int]]:
    """Return the indices of the boxes in groups, each the parts of one object, mostly one.

    A group has at most one part of each view; the parts that fit best come first. A line of text
    continues to the left and right only. Its parts may end at a word before the edge: they overlap.
    """
    arrays = BoxArrays.of(found)
    may_overlap = np.asarray([is_text and 0 not in each.views for each in found], dtype=np.bool_)
    pairs = arrays.continuations(_X, slack_px, may_overlap)
    if not is_text:
        pairs = np.concatenate([pairs, arrays.continuations(_Y, slack_px, may_overlap)])
    best_first = np.lexsort(pairs.T[::-1])[::-1]
    groups = {index: [index] for index in range(len(found))}  # key: the first part
    views = [each.views for each in found]  # key: the first part, too
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
    """Return the box around the parts of an object, which is as sure as its least sure part."""
    first = parts[0]
    if len(parts) == 1:
        return first
    lows = [min(parts, key=lambda part: part.box[side]) for side in (0, 1)]
    highs = [max(parts, key=lambda part: part.box[side]) for side in (2, 3)]
    ends = (*lows, *highs)
    x1, y1, x2, y2 = (end.box[side] for side, end in enumerate(ends))
    left, top, right, bottom = (end.cut[side] for side, end in enumerate(ends))
    views = frozenset[int]().union(*(part.views for part in parts))
    score = min(part.score for part in parts)
    cut = (left, top, right, bottom)
    return FoundBox((x1, y1, x2, y2), first.label, score, views, cut, is_joined=True)


def survivors(found: Sequence[FoundBox], is_text: bool) -> list[int]:
    """Return the indices of the boxes that are kept, one for each object, in order.

    Joined parts of an object yield to a view that saw all of it. Joined lines of text do not: a
    view that sees more of a line reads it less well.
    """

    def rank(index: int) -> tuple[bool, bool, float]:
        each = found[index]
        return each.is_cut, each.is_joined and not is_text, -each.score

    order = sorted(range(len(found)), key=rank)
    arrays = BoxArrays.of([found[index] for index in order])
    min_area_ratio = 0.0 if is_text else MIN_AREA_RATIO
    are_kept = np.ones(len(found), dtype=np.bool_)
    for better, worse in near_pairs(arrays.low, arrays.high, are_kept):
        are_others = arrays.views[better] != arrays.views[worse]
        pair = better[are_others], worse[are_others]
        is_same = arrays.same_objects(*pair, min_area_ratio)
        for one, other in zip(*(indices[is_same].tolist() for indices in pair), strict=True):
            if are_kept[one] and found[order[one]].views.isdisjoint(found[order[other]].views):
                are_kept[other] = False
    return sorted(order[index] for index in np.flatnonzero(are_kept))


def near_pairs(
    low: NDArray[np.float64], high: NDArray[np.float64], are_kept: NDArray[np.bool_]
) -> Iterator[tuple[Indices, Indices]]:
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


def shared_areas(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    other_low: NDArray[np.float64],
    other_high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the areas that pairs of boxes share."""
    sides = np.minimum(high, other_high) - np.maximum(low, other_low)
    areas: NDArray[np.float64] = np.clip(sides, 0, None).prod(axis=1)
    return areas


@dataclass(frozen=True, slots=True)
class BoxArrays:
    """Boxes as columns, for comparisons of many pairs."""

    low: NDArray[np.float64]  # (N, 2)
    high: NDArray[np.float64]  # (N, 2)
    areas: NDArray[np.float64]
    labels: NDArray[np.int64]  # equal for equal labels
    views: NDArray[np.int64]  # equal for equal views
    are_cut: NDArray[np.bool_]  # (N, 4)

    @classmethod
    def of(cls, found: Sequence[FoundBox]) -> "BoxArrays":
        corners = np.asarray([each.box for each in found], dtype=np.float64).reshape(-1, 4)
        numbers: dict[str | frozenset[int], int] = {}
        labels = [numbers.setdefault(each.label, len(numbers)) for each in found]
        views = [numbers.setdefault(each.views, len(numbers)) for each in found]
        low = corners[:, :2]
        high = corners[:, 2:]
        areas = (high - low).prod(axis=1)
        are_cut = np.asarray([each.cut for each in found], dtype=np.bool_).reshape(-1, 4)
        return cls(low, high, areas, np.asarray(labels), np.asarray(views), are_cut)

    def shared(self, ones: Indices, others: Indices) -> NDArray[np.float64]:
        return shared_areas(self.low[ones], self.high[ones], self.low[others], self.high[others])

    def overlap(self, ones: Indices, others: Indices) -> NDArray[np.bool_]:
        """Return which pairs are about the same box."""
        shared = self.shared(ones, others)
        return shared >= _MIN_IOU * (self.areas[ones] + self.areas[others] - shared)

    def continuations(
        self, axis: int, slack_px: float, may_overlap: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the pairs of a box and one that begins before its end and goes on beyond, (N, 3).

        A row is how well both fit along the edge that cuts them, and their indices.
        """
        across = 1 - axis
        reached = self.high.copy()
        reached[:, axis] += 2 * slack_px
        are_cut = self.are_cut[:, axis] | self.are_cut[:, axis + 2] | may_overlap
        found = [np.empty((0, 3))]
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
                found.append(rows)
        return np.concatenate(found)

    def same_objects(
        self, better: Indices, worse: Indices, min_area_ratio: float
    ) -> NDArray[np.bool_]:
        """Return which pairs are of one object; a box that is cut is never the better of others."""
        shared = self.shared(better, worse)
        areas = self.areas[better]
        own_areas = self.areas[worse]
        smaller = np.minimum(areas, own_areas)
        are_cut = np.any(self.are_cut, axis=1)
        own_is_smaller = own_areas <= areas
        smaller_is_cut = np.where(own_is_smaller, are_cut[worse], are_cut[better])
        is_covered = shared >= _MIN_COVERED * smaller
        is_part = smaller_is_cut | (smaller >= min_area_ratio * np.maximum(areas, own_areas))
        is_same: NDArray[np.bool_] = self.overlap(better, worse) | (is_covered & is_part)
        is_same &= self.labels[better] == self.labels[worse]
        # a part looks like something else
        is_same |= is_covered & own_is_smaller & are_cut[worse] & ~are_cut[better]
        is_same &= shared > 0
        return is_same
