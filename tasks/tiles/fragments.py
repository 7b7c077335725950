"""Boxes of parts of objects at an inner edge of a tile, where another view sees the object.

Dropped before boxes are merged: such a part hardly overlaps the box of the object.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.tiles.boxes import BoxArrays, FoundBox, cut_sides, near_pairs, shared_areas
from tasks.tiles.grid import PixelBox

# A box that ends this close to an inner edge may be a part that the model moved.
NEAR_SHARE = 0.1  # share of a tile's longer side
_MIN_MOVED = 0.25  # shared by a moved part, stretched to the edge, and the object; of the smaller
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
    row are not parts: the view would have the second one, too. Boxes without labels are not moved.
    """
    arrays = BoxArrays.of(found)
    edges = np.empty((len(found), 4))
    are_near = np.empty((len(found), 4), dtype=np.bool_)
    for index, each in enumerate(found):
        view = views[min(each.views)]
        edges[index] = view
        are_near[index] = bool(each.label) and cut_sides(each.box, view, image_size_wh, near_px)
    low = np.where(are_near[:, :2], edges[:, :2], arrays.low)
    high = np.where(are_near[:, 2:], edges[:, 2:], arrays.high)
    areas = (high - low).prod(axis=1)
    are_cut = np.any(arrays.are_cut, axis=1)
    rows = [np.empty((0, 5))]
    for pair in near_pairs(low, high, np.ones(len(found), dtype=np.bool_)):
        for part, whole in (pair, pair[::-1]):
            shared = shared_areas(low[part], high[part], arrays.low[whole], arrays.high[whole])
            is_one = shared > _MIN_MOVED * np.minimum(areas[part], arrays.areas[whole])
            is_one &= (arrays.labels[part] == arrays.labels[whole]) & ~are_cut[whole]
            is_one &= arrays.views[part] != arrays.views[whole]
            begins = arrays.low[whole] < arrays.low[part]
            goes_on = np.concatenate([begins, arrays.high[whole] > arrays.high[part]], axis=1)
            is_part = (are_near[part] & goes_on).any(axis=1) & ~arrays.overlap(part, whole)
            is_part &= arrays.areas[part] < _MAX_PART * arrays.areas[whole]
            either = areas[part] + arrays.areas[whole] - shared
            columns = (arrays.views[part], whole, either / np.maximum(shared, 1e-9), part, is_part)
            rows.append(np.column_stack(columns)[is_one])
    table = np.concatenate(rows)
    best_first = table[np.lexsort(table.T[2::-1])]
    _, best = np.unique(best_first[:, :2], axis=0, return_index=True)
    parts = best_first[best]
    are_parts = np.zeros(len(found), dtype=np.bool_)
    are_parts[parts[parts[:, 4] > 0, 3].astype(np.intp)] = True
    return are_parts
