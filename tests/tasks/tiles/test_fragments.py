"""Parts near an inner edge are dropped only beside an object that another view sees whole."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tiles.boxes import FoundBox, cut_sides
from tasks.tiles.fragments import moved_parts
from tasks.tiles.grid import Grid, PixelBox, tile_boxes

SIZE_WH = (300, 200)
VIEWS = ((0, 0, *SIZE_WH), *tile_boxes(Grid(2, 3), SIZE_WH, 0.2))
NEAR_PX = 12


def found_box(view: int, x1: float, y1: float, x2: float, y2: float, score: float) -> FoundBox:
    box = (x1, y1, x2, y2)
    label = "b" if int(score * 10) % 2 else "a"
    return FoundBox(box, label, score, frozenset({view}), cut_sides(box, VIEWS[view], SIZE_WH, 2))


@st.composite
def boxes(draw: st.DrawFn) -> FoundBox:
    """Return a box within a view, of one of two labels."""
    view = draw(st.integers(0, len(VIEWS) - 1))
    left, top, right, bottom = VIEWS[view]
    x1 = draw(st.integers(left, right - 1))
    y1 = draw(st.integers(top, bottom - 1))
    x2 = draw(st.integers(x1 + 1, right))
    y2 = draw(st.integers(y1 + 1, bottom))
    return found_box(view, x1, y1, x2, y2, draw(st.integers(0, 10)) / 10)


def area(found: FoundBox) -> float:
    x1, y1, x2, y2 = found.box
    return (x2 - x1) * (y2 - y1)


def parts(found: Sequence[FoundBox], near_px: float = NEAR_PX, scale: int = 1) -> list[bool]:
    width, height = SIZE_WH
    views: list[PixelBox] = []
    for left, top, right, bottom in VIEWS:
        views.append((left * scale, top * scale, right * scale, bottom * scale))
    size_wh = (width * scale, height * scale)
    are_parts: list[bool] = moved_parts(found, views, size_wh, near_px * scale).tolist()
    return are_parts


@given(st.lists(boxes(), max_size=30))
@settings(max_examples=60)
def test_a_part_is_near_an_edge_and_beside_a_larger_object_that_is_whole(
    found: list[FoundBox],
) -> None:
    for part, is_part in zip(found, parts(found), strict=True):
        if is_part:
            (view,) = part.views
            assert any(cut_sides(part.box, VIEWS[view], SIZE_WH, NEAR_PX))
            wholes = [each for each in found if not each.is_cut and each.views != part.views]
            larger = [each for each in wholes if area(each) > area(part)]
            assert any(each.label == part.label or each.score > part.score for each in larger)


@given(st.lists(boxes(), max_size=30))
@settings(max_examples=30)
def test_the_parts_are_the_same_at_twice_the_size(found: list[FoundBox]) -> None:
    doubled: list[FoundBox] = []
    for each in found:
        x1, y1, x2, y2 = (2 * number for number in each.box)
        doubled.append(FoundBox((x1, y1, x2, y2), each.label, each.score, each.views, each.cut))
    assert parts(doubled, scale=2) == parts(found)


@given(st.lists(boxes(), max_size=30))
@settings(max_examples=30)
def test_a_box_off_the_edges_is_never_a_part(found: list[FoundBox]) -> None:
    inner: list[FoundBox] = []
    for each in found:
        (view,) = each.views
        if not any(cut_sides(each.box, VIEWS[view], SIZE_WH, NEAR_PX)):
            inner.append(each)
    assert not any(parts(inner))


def test_a_part_with_another_label_needs_a_surer_object() -> None:
    _, _, right, _ = VIEWS[1]
    for score, is_part in ((0.5, True), (0.9, False)):
        part = found_box(1, right - 25, 20, right - 9, 40, score)
        whole = found_box(2, right - 20, 20, right + 20, 40, 0.8)
        assert part.label != whole.label
        assert parts([part, whole]) == [is_part, False]


def test_no_boxes_have_no_parts() -> None:
    assert parts([]) == []
