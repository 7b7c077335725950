"""Grids cover the image, with about square tiles that overlap."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.table import TASKS, TaskParameters
from tasks.tiles.grid import MAX_TILES, Grid, Tiling, grid_of, parse_tiles, refusal, tile_boxes

PHOTO_WH = (4000, 3000)


def auto(size_wh: tuple[int, int], min_object_px: int = 16, max_tiles: int = 64) -> Grid:
    return grid_of(Tiling("auto", 0.2, min_object_px), size_wh, 1 / 24, max_tiles)


@pytest.mark.parametrize(
    ("value", "tiles"),
    [
        ("off", "off"),
        ("auto", "auto"),
        (6, 6),
        ("6", 6),
        ({"rows": 2, "columns": 3}, Grid(2, 3)),
        ("2x3", Grid(2, 3)),
        ("32x32", Grid(32, 32)),
        ('{"rows": 2, "columns": 3}', Grid(2, 3)),
        (MAX_TILES, MAX_TILES),
    ],
)
def test_parsed_tiles(value: object, tiles: object) -> None:
    assert parse_tiles(value) == tiles


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 1.5, 1e999, MAX_TILES + 1, "on", "", "0", "2x", "2x0", "9999x9999"),
        *("x" * 5000, "[" * 60, "\ud800", "true", [2, 3], {}, {"rows": 2}),
        {"rows": 2, "columns": True},
        {"rows": 2, "columns": 3, "x": 1},
        {"rows": MAX_TILES, "columns": 2},
    ],
)
def test_bad_tiles_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="off, auto, a number from 1 to 1024, or rows and columns"):
        parse_tiles(value)


@pytest.mark.parametrize(
    ("task", "parameters", "is_refused"),
    [
        ("object_detection", {}, False),
        ("ocr", {}, False),
        ("instance_segmentation", {"phrase": "a"}, False),
        ("instance_segmentation", {"region": (0.0, 0.0, 1.0, 1.0)}, True),
        ("captioning", {}, True),
        ("region_description", {"region": (0.0, 0.0, 1.0, 1.0)}, True),
        ("visual_question_answering", {"question": "a"}, True),
    ],
)
def test_tasks_without_tiles(task: str, parameters: dict[str, Any], is_refused: bool) -> None:
    assert (refusal(TASKS[task], TaskParameters(**parameters)) is not None) == is_refused


@pytest.mark.parametrize(
    ("number", "size_wh", "grid"),
    [
        (1, PHOTO_WH, Grid(1, 1)),
        (5, PHOTO_WH, Grid(2, 2)),
        (6, PHOTO_WH, Grid(2, 3)),
        (20, PHOTO_WH, Grid(4, 5)),
        (20, (3000, 4000), Grid(5, 4)),
        (12, (12_000, 1000), Grid(1, 12)),
        (64, (3, 1), Grid(1, 3)),
    ],
)
def test_grid_of_a_number(number: int, size_wh: tuple[int, int], grid: Grid) -> None:
    assert grid_of(Tiling(number, 0.2, 16), size_wh, 1 / 24, 64) == grid


def test_auto() -> None:
    assert auto((384, 384)) == Grid(1, 1)
    assert auto((385, 384)) == Grid(1, 2)
    assert auto((691, 691)) == Grid(2, 2)  # 691 is 1.8 times 384: two tiles and their overlap
    assert auto((692, 691)) == Grid(2, 3)
    assert auto((692, 691), min_object_px=32) == Grid(1, 1)
    assert auto(PHOTO_WH, max_tiles=200) == Grid(10, 13)
    assert auto(PHOTO_WH) == Grid(7, 9)
    assert auto(PHOTO_WH, max_tiles=1) == Grid(1, 1)
    assert grid_of(Tiling(Grid(9, 9), 0.2, 16), (4, 2), 1 / 24, 64) == Grid(2, 4)


def test_tile_boxes() -> None:
    boxes = tile_boxes(Grid(2, 3), (260, 180), 0.2)
    assert boxes == (
        *((0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)),
        *((0, 80, 100, 180), (80, 80, 180, 180), (160, 80, 260, 180)),
    )
    assert tile_boxes(Grid(1, 2), (100, 9), 0.0) == ((0, 0, 50, 9), (50, 0, 100, 9))
    assert tile_boxes(Grid(1, 1), (100, 9), 0.2) == ()


@settings(max_examples=30)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 60) | st.just("auto"),
    st.floats(0, 0.5),
)
def test_tiles_cover_the_image(width: int, height: int, tiles: Any, overlap: float) -> None:
    grid = grid_of(Tiling(tiles, overlap, 16), (width, height), 1 / 12, 64)
    assert grid.num_tiles <= 64
    boxes = tile_boxes(grid, (width, height), overlap)
    assert len(boxes) == (grid.num_tiles if grid.num_tiles > 1 else 0)
    reached = 0
    for left, _, right, _ in boxes[: grid.columns]:
        assert 0 <= left <= reached
        assert left < right <= width
        reached = right
    assert not boxes or reached == width
    assert all(0 <= top < bottom <= height for _, top, _, bottom in boxes)
