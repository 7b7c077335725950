"""Boxes that several views found: which are parts of one object, and which are the same object.

A part is joined with the one on the other side of an inner edge that cuts both. Of the boxes of one
object the one that no inner edge cuts is kept, then the one with the best score. Two boxes of one
view are never the same object: the model distinguished them. A part within a box that is not cut
is dropped whatever its label: a model names a part of a circle otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.results import BoxXyxy
from tasks.tiles.grid import PixelBox

# A box that ends this close to an inner edge is cut by it: models place edges that exactly.
EDGE_SHARE = 0.02  # share of a tile's longer side
_MIN_IOU = 0.5
_MIN_COVERED = 0.8  # share of the smaller box
_MIN_ACROSS = 0.5  # IoU of two parts along the edge that cuts both
_MIN_AREA_RATIO = 0.25  # a whole object within another one that is larger than that is another one

_X = 0
_Y = 1


@dataclass(frozen=True, slots=True)
class FoundBox:
    """The box of an object, of a part of it, or of joined parts."""

    box: BoxXyxy
    label: str  # '' if boxes are compared with all others
    score: float
    views: frozenset[int]
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
    continues to the left and right only.
    """
    arrays = _Arrays.of(found)
    pairs: list[tuple[float, int, int]] = []
    for index, each in enumerate(found):
        for axis in (_X,) if is_text else (_X, _Y):
            if each.cut[axis + 2]:
                pairs += arrays.continuations(index, axis, slack_px)
    groups = {index: [index] for index in range(len(found))}  # key: the first part
    first_parts = list(groups)
    for _, one, other in sorted(pairs, reverse=True):
        parts = groups[first_parts[one]]
        others = groups[first_parts[other]]
        if _views(found, parts).isdisjoint(_views(found, others)):
            del groups[first_parts[other]]
            parts += others
            for index in others:
                first_parts[index] = first_parts[one]
    return list(groups.values())


def _views(found: Sequence[FoundBox], indices: Sequence[int]) -> frozenset[int]:
    return frozenset[int]().union(*(found[index].views for index in indices))


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
    views = _views(parts, range(len(parts)))
    score = min(part.score for part in parts)
    cut = (left, top, right, bottom)
    return FoundBox((x1, y1, x2, y2), first.label, score, views, cut, is_joined=True)


def survivors(found: Sequence[FoundBox], is_text: bool) -> list[int]:
    """Return the indices of the boxes that are kept, one for each object, in order.

    Joined parts of an object yield to a view that saw all of it. Joined lines of text do not: a
    view that sees more of a line reads it less well.
    """

    def rank(index: int) -> tuple[bool, float]:
        each = found[index]
        return each.is_cut or (each.is_joined and not is_text), -each.score

    arrays = _Arrays.of(found)
    kept = np.empty(len(found), dtype=np.intp)
    num_kept = 0
    for index in sorted(range(len(found)), key=rank):
        rivals = arrays.same_objects(index, kept[:num_kept], 0.0 if is_text else _MIN_AREA_RATIO)
        views = found[index].views
        if all(views & found[other].views for other in rivals):
            kept[num_kept] = index
            num_kept += 1
    return sorted(kept[:num_kept].tolist())


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The boxes as columns, for comparisons of one with many."""

    low: NDArray[np.float64]  # (N, 2)
    high: NDArray[np.float64]  # (N, 2)
    areas: NDArray[np.float64]
    labels: NDArray[np.int64]  # equal for equal labels
    are_cut: NDArray[np.bool_]  # (N, 4)

    @classmethod
    def of(cls, found: Sequence[FoundBox]) -> "_Arrays":
        corners = np.asarray([each.box for each in found], dtype=np.float64).reshape(-1, 4)
        numbers: dict[str, int] = {}
        labels = [numbers.setdefault(each.label, len(numbers)) for each in found]
        low = corners[:, :2]
        high = corners[:, 2:]
        areas = (high - low).prod(axis=1)
        are_cut = np.asarray([each.cut for each in found], dtype=np.bool_).reshape(-1, 4)
        return cls(low, high, areas, np.asarray(labels, dtype=np.int64), are_cut)

    def continuations(self, index: int, axis: int, slack_px: float) -> list[tuple[float, int, int]]:
        """Return the boxes that begin before box `index` ends and go on beyond.

        Each with how well both fit along the edge that cuts them, and `index`.
        """
        across = 1 - axis
        end = self.high[index, axis]
        goes_on = (self.low[:, axis] > self.low[index, axis]) & (self.high[:, axis] > end)
        goes_on &= (self.low[:, axis] <= end + 2 * slack_px) & self.are_cut[:, axis]
        goes_on &= self.labels == self.labels[index]
        low = self.low[:, across]
        high = self.high[:, across]
        shared = np.minimum(high, high[index]) - np.maximum(low, low[index])
        either = np.maximum(high, high[index]) - np.minimum(low, low[index])
        goes_on &= shared >= _MIN_ACROSS * either
        others: list[int] = np.flatnonzero(goes_on).tolist()
        return [(float(shared[other] / either[other]), index, other) for other in others]

    def same_objects(
        self, index: int, indices: NDArray[np.intp], min_area_ratio: float
    ) -> list[int]:
        """Return the boxes among `indices` that are the object of box `index`."""
        low = np.maximum(self.low[indices], self.low[index])
        high = np.minimum(self.high[indices], self.high[index])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        areas = self.areas[indices]
        own_area = self.areas[index]
        smaller = np.minimum(areas, own_area)
        is_same = shared >= _MIN_IOU * (areas + own_area - shared)
        own_is_smaller = own_area <= areas
        smaller_is_cut = np.where(
            own_is_smaller, self.are_cut[index].any(), self.are_cut[indices].any(axis=1)
        )
        is_covered = shared >= _MIN_COVERED * smaller
        is_part = smaller_is_cut | (smaller >= min_area_ratio * np.maximum(areas, own_area))
        is_same |= is_covered & is_part
        is_same &= (shared > 0) & (self.labels[indices] == self.labels[index])
        if self.are_cut[index].any():  # a part looks like something else
            are_whole = (shared > 0) & ~self.are_cut[indices].any(axis=1)
            is_same |= is_covered & own_is_smaller & are_whole
        same: list[int] = indices[is_same].tolist()
        return same
