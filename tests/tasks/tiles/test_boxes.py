"""Of many boxes, only those that are near each other are compared."""

import numpy as np
from numpy.typing import NDArray

from tasks.tiles.boxes import FoundBox, near_pairs, survivors

SIDE = 100  # boxes in a row, and rows


def places(step: float) -> NDArray[np.float64]:
    """Return the upper left corners of boxes on a grid, (N, 2)."""
    steps = np.arange(SIDE) * step
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def test_the_boxes_around_each_of_10_000_are_compared_with_it_once() -> None:
    low = places(step=8)
    pairs = set[tuple[int, int]]()
    num_pairs = 0
    for ones, others in near_pairs(low, low + 10, np.ones(len(low), dtype=np.bool_)):
        assert (ones < others).all()
        assert (np.abs(low[ones] - low[others]) <= 8).all()
        pairs.update(zip(ones.tolist(), others.tolist(), strict=True))
        num_pairs += len(ones)
    assert num_pairs == len(pairs) == 2 * SIDE * (SIDE - 1) + 2 * (SIDE - 1) ** 2


def test_a_box_that_is_dropped_is_compared_no_more() -> None:
    low = np.zeros((2000, 2))
    are_kept = np.ones(len(low), dtype=np.bool_)
    num_pairs = 0
    for _, others in near_pairs(low, low + 10, are_kept):
        num_pairs += len(others)
        are_kept[others] = False
    assert are_kept.sum() == 1
    assert num_pairs < 64 * len(low)


def test_of_many_boxes_at_one_place_the_best_view_stays() -> None:
    found: list[FoundBox] = []
    for view in range(3):
        for index in range(200):
            score = 0.9 if (view, index) == (1, 7) else 0.5
            cut = (False, False, False, False)
            found.append(FoundBox((0, 0, 10, 10), "a", score, frozenset({view}), cut))
    assert survivors(found, is_text=False) == list(range(200, 400))
