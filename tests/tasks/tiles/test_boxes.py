"""Boxes of several views: edges that cut them, parts of one object, and which of them stay."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.results import BoxXyxy, Detection
from tasks.tiles.grid import PixelBox
from tasks.tiles.merging import (
    FoundBox,
    cut_sides,
    joined,
    moved_parts,
    near_pairs,
    parts_of_objects,
    seen_whole,
    survivors,
)

SIZE_WH = (180, 100)
WHOLE = (0, 0, *SIZE_WH)
LEFT = (0, 0, 100, 100)
RIGHT = (80, 0, 180, 100)
VIEWS: list[PixelBox] = [WHOLE, LEFT, RIGHT]
SIDE = 100  # boxes in a row, and rows
UNCUT = (False, False, False, False)


def box_of(view: int, box: BoxXyxy, label: str = "a", score: float = 0.5) -> FoundBox:
    return part_of(view, box, cut_sides(box, VIEWS[view], SIZE_WH, 2), label, score)


def part_of(
    view: int,
    box: BoxXyxy,
    cut: tuple[bool, bool, bool, bool],
    label: str = "a",
    score: float = 0.5,
) -> FoundBox:
    return FoundBox(Detection(box, label, score), box, label, frozenset({view}), cut)


@pytest.mark.parametrize(
    ("view", "box", "expected"),
    [
        # within the image: edges at 20, 10, 120, 90; cut within 2 pixels of them
        ((20, 10, 120, 90), (22, 30, 50, 50), (True, False, False, False)),
        ((20, 10, 120, 90), (23, 30, 50, 50), UNCUT),
        ((20, 10, 120, 90), (50, 12, 60, 50), (False, True, False, False)),
        ((20, 10, 120, 90), (50, 13, 60, 50), UNCUT),
        ((20, 10, 120, 90), (50, 30, 118, 50), (False, False, True, False)),
        ((20, 10, 120, 90), (50, 30, 117, 50), UNCUT),
        ((20, 10, 120, 90), (50, 30, 60, 88), (False, False, False, True)),
        ((20, 10, 120, 90), (50, 30, 60, 87), UNCUT),
        # the edges of the image cut nothing; 100 is its height, and below its width
        (LEFT, (0, 0, 50, 100), UNCUT),
        (LEFT, (0, 0, 100, 100), (False, False, True, False)),
        (RIGHT, (80, 0, 180, 100), (True, False, False, False)),
        (WHOLE, (0, 0, 180, 100), UNCUT),
    ],
)
def test_an_inner_edge_cuts_the_sides_at_it(
    view: PixelBox, box: BoxXyxy, expected: tuple[bool, bool, bool, bool]
) -> None:
    assert cut_sides(box, view, SIZE_WH, 2) == expected


def test_parts_across_an_edge_are_one_object() -> None:
    parts = [box_of(1, (60, 20, 100, 60)), box_of(2, (80, 22, 130, 60), score=0.4)]
    assert parts_of_objects(parts, 2, is_text=False) == [[0, 1]]
    whole = joined(parts)
    assert (whole.box, whole.found.score, whole.views) == (
        (60, 20, 130, 60),
        0.4,
        frozenset({1, 2}),
    )
    assert (whole.cut, whole.is_joined) == (UNCUT, True)
    assert joined(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    "other",
    [
        box_of(2, (80, 22, 130, 60), label="b"),
        box_of(2, (80, 62, 130, 99)),  # beside it
        box_of(2, (90, 22, 130, 60)),  # not cut
        box_of(2, (80, 20, 98, 60)),  # ends before it
        box_of(1, (60, 20, 100, 61)),  # of the same view
        box_of(2, (80, 20, 100, 60)),  # ends where it ends
        box_of(2, (80, 30, 130, 90)),  # shares 30 of 70 pixels of the edge
        box_of(2, (80, 41, 130, 60)),  # 19 of 40
        part_of(2, (105, 20, 130, 60), (True, False, False, False)),
    ],
)
def test_other_boxes_are_other_objects(other: FoundBox) -> None:
    parts = [box_of(1, (60, 20, 100, 60)), other]
    assert parts_of_objects(parts, 2, is_text=False) == [[0], [1]]


@pytest.mark.parametrize("box", [(80, 40, 130, 60), (104, 20, 130, 60)])
def test_parts_share_half_of_the_edge_and_are_within_the_slack_of_both(box: BoxXyxy) -> None:
    other = part_of(2, box, (True, False, False, True))
    parts = [box_of(1, (60, 20, 100, 60)), other]
    assert parts_of_objects(parts, 2, is_text=False) == [[0, 1]]


def test_joined_parts_are_cut_where_the_outermost_part_is() -> None:
    top = part_of(1, (10, 10, 50, 40), (True, False, False, True))
    bottom = part_of(2, (20, 30, 60, 80), (False, True, False, True))
    assert joined([top, bottom]).box == (10, 10, 60, 80)
    assert joined([top, bottom]).cut == (True, False, False, True)
    bottom = part_of(2, (20, 30, 60, 80), (False, True, True, False))
    assert joined([top, bottom]).cut == (True, False, True, False)


def test_flat_boxes_are_not_parts() -> None:
    flat = [box_of(1, (60, 20, 100, 20)), box_of(2, (80, 20, 130, 20))]
    assert parts_of_objects(flat, 2, is_text=True) == [[0], [1]]


def test_lines_of_text_continue_to_the_right_where_they_overlap() -> None:
    line = [box_of(1, (10, 20, 96, 30)), box_of(2, (85, 20, 130, 30))]
    assert parts_of_objects(line, 2, is_text=True) == [[0, 1]]
    assert parts_of_objects(line, 2, is_text=False) == [[0], [1]]
    below = [box_of(1, (10, 20, 96, 30)), box_of(2, (10, 28, 96, 38))]
    assert parts_of_objects(below, 2, is_text=True) == [[0], [1]]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # the same object in two views: the better one stays, of the same view both
        (box_of(0, (10, 10, 50, 50)), box_of(1, (12, 10, 50, 50), score=0.6), [1]),
        (box_of(1, (10, 10, 50, 50)), box_of(1, (12, 10, 50, 50), score=0.6), [0, 1]),
        (box_of(0, (10, 10, 50, 50)), box_of(1, (10, 10, 50, 50), label="b"), [0, 1]),
        # an object that an edge cuts is worse than one that is whole
        (box_of(0, (60, 10, 140, 50)), box_of(1, (60, 10, 100, 50), score=0.9), [0]),
        (box_of(0, (60, 10, 140, 50)), box_of(1, (60, 10, 100, 50), label="b", score=0.9), [0]),
        # half of either box is shared, and less than half
        (box_of(0, (0, 0, 20, 30)), box_of(1, (0, 10, 20, 40), score=0.6), [1]),
        (box_of(0, (0, 0, 20, 30)), box_of(1, (0, 11, 20, 41), score=0.6), [0, 1]),
        # a quarter of a larger object is a part of it, and less is another object
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 0, 20, 20), score=0.6), [1]),
        (box_of(0, (0, 0, 41, 40)), box_of(1, (0, 0, 20, 20), score=0.6), [0, 1]),
        # four fifths of the smaller box are within the larger one
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 20, 40, 45), score=0.4), [0]),
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 21, 40, 46), score=0.4), [0, 1]),
        (box_of(0, (0, 0, 40, 40)), box_of(1, (50, 0, 90, 40)), [0, 1]),
    ],
)
def test_one_box_of_each_object_stays(one: FoundBox, other: FoundBox, expected: list[int]) -> None:
    assert survivors([one, other], is_text=False) == expected
    swapped = [1 - index for index in reversed(expected)]
    assert survivors([other, one], is_text=False) == sorted(swapped)


def test_joined_parts_yield_to_a_view_that_saw_all_but_lines_of_text_do_not() -> None:
    parts = joined(
        [box_of(1, (60, 20, 100, 60), score=0.9), box_of(2, (80, 20, 130, 60), score=0.9)]
    )
    whole = box_of(0, (60, 20, 130, 60))
    assert survivors([parts, whole], is_text=False) == [1]
    assert survivors([parts, whole], is_text=True) == [0]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (box_of(2, (84, 20, 112, 40)), True),  # cut by LEFT's edge at 100: within RIGHT
        (box_of(2, (82, 20, 112, 40)), False),
        (box_of(0, (84, 20, 112, 40)), False),  # no edge cuts it
    ],
)
def test_a_cut_box_within_another_tile_is_seen_whole(part: FoundBox, expected: bool) -> None:
    cut = part_of(min(part.views), part.box, (part.views != {0}, False, False, False))
    assert seen_whole([cut], [LEFT, RIGHT], SIZE_WH, 2).tolist() == [expected]


def test_a_box_beyond_the_image_is_not_seen_whole() -> None:
    cut = (True, False, False, False)
    places = {(0, 0, 50, 100): True, (-1, 0, 50, 100): False, (0, 0, 50, 101): False}
    for box, expected in places.items():
        found = part_of(2, box, cut)
        assert seen_whole([found], [LEFT], SIZE_WH, 2).tolist() == [expected]


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (box_of(1, (70, 20, 92, 40)), box_of(0, (70, 20, 120, 40)), True),
        (box_of(1, (70, 20, 89, 40)), box_of(0, (70, 20, 120, 40)), False),  # not near the edge
        (box_of(2, (88, 20, 110, 40)), box_of(0, (60, 20, 110, 40)), True),
        (box_of(1, (70, 20, 92, 40)), box_of(1, (70, 20, 99, 40)), False),  # of one view
        (box_of(1, (70, 20, 92, 40)), box_of(0, (50, 20, 92, 40)), False),  # does not go on
        (box_of(1, (70, 20, 92, 40)), box_of(0, (99, 20, 150, 40)), False),  # shares too little
        (box_of(1, (70, 20, 92, 40)), box_of(0, (70, 20, 95, 40)), False),  # nearly as large
        (box_of(1, (70, 20, 92, 40), "b"), box_of(0, (70, 20, 120, 40)), False),  # as sure
        (box_of(1, (70, 20, 92, 40), "b"), box_of(0, (70, 20, 120, 40), score=0.6), True),
        (box_of(1, (70, 20, 92, 40)), box_of(0, (70, 20, 180, 99)), True),  # of its label
        (box_of(1, (70, 20, 92, 40), "b"), box_of(0, (70, 20, 180, 99), score=0.6), False),
        (box_of(1, (70, 20, 92, 40), "b"), box_of(0, (70, 20, 114, 60), score=0.6), True),
        (box_of(1, (70, 20, 92, 40), ""), box_of(0, (70, 20, 180, 99), "", 0.6), False),
    ],
)
def test_a_part_that_was_moved_from_the_edge_is_dropped(
    part: FoundBox, whole: FoundBox, expected: bool
) -> None:
    assert moved_parts([part, whole], VIEWS, SIZE_WH, 10).tolist() == [expected, False]
    assert moved_parts([whole, part], VIEWS, SIZE_WH, 10).tolist() == [False, expected]


def test_of_two_boxes_in_a_row_only_the_best_is_a_part() -> None:
    whole = box_of(0, (30, 20, 120, 40))
    row = [box_of(1, (30, 20, 60, 40)), box_of(1, (62, 20, 92, 40))]
    assert moved_parts([*row, whole], VIEWS, SIZE_WH, 10).tolist() == [False, True, False]
    assert moved_parts([], VIEWS, SIZE_WH, 10).tolist() == []


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
