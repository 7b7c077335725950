"""The grid of tiles that a request asks for, and the tiles of an image.

Neighbouring tiles overlap by a share of their side, so that an object that a tile cuts is whole in
the next one if it is small. Tiles have about the shape of a model's input, which is square.
"""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Literal

from tasks.table import Task, TaskParameters

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside

MAX_TILES = 1024  # any request; a service allows fewer
MAX_OVERLAP = 0.5
_MAX_TEXT_CHARS = 64
_ROWS_BY_COLUMNS = re.compile(r"(\d{1,4})x(\d{1,4})")
_ALLOWED = (
    f"it must be off, auto, a number from 1 to {MAX_TILES}, or rows and columns with at most"
    f' {MAX_TILES} tiles, as {{"rows": 2, "columns": 3}} or 2x3'
)


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of tiles."""

    rows: int
    columns: int

    @property
    def num_tiles(self) -> int:
        return self.rows * self.columns


# A number is the maximum of tiles: the grid follows the shape of the image.
Tiles = Literal["off", "auto"] | int | Grid


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a request divides an image; `tiles` is not off."""

    tiles: Tiles
    overlap: float
    min_object_px: int


def parse_tiles(value: object) -> Tiles:
    """Return the tiles in a JSON value, or in the text of a form; raise `ValueError`."""
    if isinstance(value, str) and len(value) <= _MAX_TEXT_CHARS:
        if match := _ROWS_BY_COLUMNS.fullmatch(value):
            value = {"rows": int(match[1]), "columns": int(match[2])}
        else:
            with suppress(ValueError, RecursionError):  # then it is a word
                value = json.loads(value)
    match value:
        case "off" | "auto" as word:
            return word
        case int(number) if not isinstance(number, bool) and 1 <= number <= MAX_TILES:
            return number
        case Mapping() as sides if sides.keys() == {"rows", "columns"}:
            rows = sides["rows"]
            columns = sides["columns"]
            if type(rows) is int and type(columns) is int and min(rows, columns) > 0:
                grid = Grid(rows, columns)
                if grid.num_tiles <= MAX_TILES:
                    return grid
    raise ValueError(_ALLOWED)


def refusal(task: Task, parameters: TaskParameters) -> str | None:
    """Return why a request cannot be asked in tiles, or None if it can."""
    if task.result_kind == "text" and task.id != "ocr":
        return f"{task.id} is about the whole image; tiles are for objects and text"
    if parameters.region is not None:
        return "tiles cannot be combined with region, which is a part of the image already"
    return None


def grid_of(
    tiling: Tiling, image_size_wh: tuple[int, int], min_object_share: float, max_tiles: int
) -> Grid:
    """Return the grid of an image, of at most `max_tiles` unless rows and columns are given.

    `auto` makes the smallest object at least `min_object_share` of the longer side of its tile.
    """
    width, height = image_size_wh
    match tiling.tiles:
        case Grid(rows, columns):
            return Grid(min(rows, height), min(columns, width))
        case int(number):
            return _best_grid(number, image_size_wh, tiling.overlap)
        case _:
            max_side_px = tiling.min_object_px / min_object_share
            columns = _num_tiles(width, max_side_px, tiling.overlap)
            rows = _num_tiles(height, max_side_px, tiling.overlap)
            if rows * columns <= max_tiles:
                return Grid(rows, columns)
            return _best_grid(max_tiles, image_size_wh, tiling.overlap)


def tile_boxes(grid: Grid, image_size_wh: tuple[int, int], overlap: float) -> tuple[PixelBox, ...]:
    """Return the tiles row by row; none if one tile would be the whole image."""
    if grid.num_tiles == 1:
        return ()
    width, height = image_size_wh
    rows = _spans(height, grid.rows, overlap)
    columns = _spans(width, grid.columns, overlap)
    return tuple(
        (left, top, right, bottom) for (top, bottom), (left, right) in product(rows, columns)
    )


def _best_grid(max_tiles: int, image_size_wh: tuple[int, int], overlap: float) -> Grid:
    """Return the grid whose tiles have the shortest longest side; of equal ones the smallest."""
    width, height = image_size_wh

    def badness(grid: Grid) -> tuple[float, int]:
        sides = _tile_side(width, grid.columns, overlap), _tile_side(height, grid.rows, overlap)
        return max(sides), grid.num_tiles

    grids: list[Grid] = []
    for columns in range(1, min(max_tiles, width) + 1):
        needed = _num_tiles(height, _tile_side(width, columns, overlap), overlap)
        grids.append(Grid(min(max_tiles // columns, needed), columns))
    return min(grids, key=badness)


def _tile_side(side_px: int, num_tiles: int, overlap: float) -> float:
    return side_px / (num_tiles - (num_tiles - 1) * overlap)


def _num_tiles(side_px: int, max_tile_px: float, overlap: float) -> int:
    """Return the fewest tiles along a side of which none is longer than `max_tile_px`."""
    needed = math.ceil((side_px / max_tile_px - overlap) / (1 - overlap) - 1e-9)
    return min(max(1, needed), side_px)


def _spans(side_px: int, num_tiles: int, overlap: float) -> list[tuple[int, int]]:
    tile_px = _tile_side(side_px, num_tiles, overlap)
    spans: list[tuple[int, int]] = []
    for index in range(num_tiles):
        start_px = index * tile_px * (1 - overlap)
        first = min(round(start_px), side_px - 1)
        spans.append((first, min(side_px, max(first + 1, round(start_px + tile_px)))))
    return spans
