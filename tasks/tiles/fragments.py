"""Boxes of parts of objects at an inner edge of a tile, where another view sees the object.

Dropped before boxes are merged: such a part hardly overlaps the box of the object.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.tiles.boxes import (
    MIN_AREA_RATIO,
    BoxArrays,
    FoundBox,
    Indices,
    cut_sides,
    near_pairs,
    shared_areas,
)
from tasks.tiles.grid import PixelBox

# A box that ends this close to an inner edge may be a part that the model moved.
NEAR_SHARE = 0.1  # share of a tile's longer side
_MIN_MOVED = 0.1  # shared by a moved part, stretched to the edge, and the object; of the smaller
_MAX_PART = 0.85  # area of a moved part; of the object's


def seen_whole(
    found: Sequence[FoundBox],
    tiles: Sequence[PixelBox],
    image_size_wh: tuple[int, int],
    slack_px: float,
) -> NDArray[np.bool_]:
    """Return which boxes that an inner edge cuts are within a tile, off its inner edges."""
    arrays = BoxArrays.of(found)
    are_seen = np.zeros(len(found), dtype=np.bool_)
    for tile in tiles:
        start = np.asarray(tile[:2])
        end = np.asarray(tile[2:])
        are_off = (arrays.low > start + slack_px) | ((start == 0) & (arrays.low >= 0))
        are_off &= (arrays.high < end - slack_px) | (
            (end == image_size_wh) & (arrays.high <= image_size_wh)
        )
        are_seen |= are_off.all(axis=1)
    return are_seen & arrays.are_cut.any(axis=1)


def moved_parts(
    found: Sequence[FoundBox],
    views: Sequence[PixelBox],
    image_size_wh: tuple[int, int],
    near_px: float,
) -> NDArray[np.bool_]:
    """Return which boxes are parts near an inner edge of objects that another view sees whole.

    Models that are trained on whole objects move a part away from the edge that cuts it. Such a box
    is stretched to the edge again, and compared with the box that goes on there. Two objects in a
    row are not parts: the view would have the second one, too.
    """
    boxes = BoxArrays.of(found)
    edges = np.asarray([views[min(each.views)] for each in found]).reshape(-1, 4)
    are_near = np.empty((len(found), 4), dtype=np.bool_)
    for index, each in enumerate(found):
        are_near[index] = cut_sides(each.box, views[min(each.views)], image_size_wh, near_px)
    low = np.where(are_near[:, :2], edges[:, :2], boxes.low)
    high = np.where(are_near[:, 2:], edges[:, 2:], boxes.high)
    part, whole = best_of_each_view(boxes, low, high)
    begins_before = boxes.low[whole] < boxes.low[part]
    ends_after = boxes.high[whole] > boxes.high[part]
    goes_on = np.concatenate([begins_before, ends_after], axis=1)
    is_moved = (are_near[part] & goes_on).any(axis=1)
    is_moved &= boxes.areas[part] < _MAX_PART * boxes.areas[whole]
    is_moved &= ~boxes.overlap(part, whole)  # such boxes are one object, of which the better stays
    is_moved &= are_alike(found, boxes, part, whole)
    are_parts = np.zeros(len(found), dtype=np.bool_)
    are_parts[part[is_moved]] = True
    return are_parts


def are_alike(
    found: Sequence[FoundBox], boxes: BoxArrays, part: Indices, whole: Indices
) -> NDArray[np.bool_]:
    """Return which pairs may be a part and its object by their labels and scores.

    A part often has another label than the object, which is surer then. Without a common label a
    small box may be an object in front of the larger one.
    """
    scores = np.asarray([each.score for each in found])
    are_named = np.asarray([bool(each.label) for each in found], dtype=np.bool_)
    has_its_label = boxes.labels[part] == boxes.labels[whole]
    is_large = boxes.areas[part] >= MIN_AREA_RATIO * boxes.areas[whole]
    is_named_so = has_its_label & are_named[part]
    is_likely = has_its_label | (scores[part] < scores[whole])
    may_be_one: NDArray[np.bool_] = is_named_so | (is_likely & is_large)
    return may_be_one


def best_of_each_view(
    boxes: BoxArrays, low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[Indices, Indices]:
    """Return pairs of a box, stretched to `low` and `high`, and a whole object of another view.

    Of the boxes of a view at the place of an object it is the one with the highest IoU.
    """
    areas = (high - low).prod(axis=1)
    are_whole = ~np.any(boxes.are_cut, axis=1)
    parts = [np.empty(0, dtype=np.intp)]
    wholes = [np.empty(0, dtype=np.intp)]
    ious = [np.empty(0)]
    for pair in near_pairs(low, high, np.ones(len(low), dtype=np.bool_)):
        for part, whole in (pair, pair[::-1]):
            shared = shared_areas(low[part], high[part], boxes.low[whole], boxes.high[whole])
            either = areas[part] + boxes.areas[whole] - shared
            smaller = np.minimum(areas[part], boxes.areas[whole])
            is_there = (boxes.views[part] != boxes.views[whole]) & are_whole[whole]
            is_there &= shared > _MIN_MOVED * smaller
            parts.append(part[is_there])
            wholes.append(whole[is_there])
            ious.append(shared[is_there] / either[is_there])
    part = np.concatenate(parts)
    whole = np.concatenate(wholes)
    views = boxes.views[part]
    best_first = np.lexsort((-np.concatenate(ious), whole, views))
    view_and_whole = np.column_stack((views, whole))[best_first]
    _, first = np.unique(view_and_whole, axis=0, return_index=True)
    best = best_first[first]
    return part[best], whole[best]
