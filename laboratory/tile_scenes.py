"""Large images with the shapes that the embedded models know, for measurements of tiles.

Small shapes of several sizes, on every seam and corner of the tiles, in pairs, larger than a tile,
and none, on an even or a textured background; a panorama and a receipt.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from export.scenes import SceneObject, sample_scene
from export.scenes.geometry import outline_xy
from export.scenes.render import draw_ring, render_background
from export.scenes.sampling import COLOR_RGB
from export.scenes.scene import COLORS, SHAPES
from tasks.tiles.grid import Grid, PixelBox, tile_boxes

SIZE_WH = (4000, 3000)
SIZES_WH = {"panorama": (12000, 1000), "receipt": (800, 6000)}  # others are of `SIZE_WH`
GRID = Grid(7, 9)
OVERLAP = 0.2
KINDS = ("seams", "pairs", "large", "empty", "textured", *SIZES_WH)
_SHAPE_PX = 80  # shapes on seams and in pairs, and in images of another size
_GAP_PX = 6  # between the shapes of a pair
_LARGE_SHARE = 0.3  # share of the image's width
_SHARES = (0.03, 0.33)  # sizes of shapes, as shares of the side; training has 0.11 to 0.33
_SIZED_PX = 768  # side of such an image
_BACKGROUND_PX = 384
_FIRST_SEED = 950_000_000  # training uses smaller seeds only
_SEEDS_APART = 1000
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class LargeScene:
    """An image, its file, and the shapes in it."""

    image: Image.Image
    data: bytes
    objects: tuple[SceneObject, ...]


def scenes(
    kind: str, num_scenes: int, seed: int = 0, size_wh: tuple[int, int] = SIZE_WH
) -> Iterator[LargeScene]:
    """Yield the scenes of a kind: `N px`, or one of `KINDS`; another seed yields others."""
    width, height = size_wh = SIZES_WH.get(kind, size_wh)
    cells = tile_boxes(Grid(max(1, height // 500), max(1, width // 500)), size_wh, 0.0)
    wide_cells = tile_boxes(Grid(height // 600, width // 500), size_wh, 0.0)
    for rng, background in _drawn(num_scenes, seed):
        if kind == "seams":
            objects = shapes_on_seams(rng, _SHAPE_PX)
        elif kind == "pairs":
            objects = _pairs(rng, wide_cells)
        elif kind == "large":
            halves = tile_boxes(Grid(1, 2), size_wh, 0.0)
            objects = _in_cells(rng, halves, round(_LARGE_SHARE * width))
        elif kind in ("empty", "textured"):
            objects = ()
        elif kind in SIZES_WH:
            objects = _in_cells(rng, cells, _SHAPE_PX)
        else:
            objects = _in_cells(rng, wide_cells, int(kind.partition(" ")[0]))
        image = background.resize(size_wh)
        if kind == "textured":
            levels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            image = Image.blend(image, Image.fromarray(levels).resize(size_wh), 0.3)
        yield _rendered(image, objects)


def scenes_of_all_sizes(num_scenes: int, seed: int = 0) -> Iterator[LargeScene]:
    """Yield images with one to four shapes, each of another share of the side."""
    low, high = np.log(_SHARES)
    cells = tile_boxes(Grid(2, 2), (_SIZED_PX, _SIZED_PX), 0.0)
    for rng, background in _drawn(num_scenes, seed):
        objects: list[SceneObject] = []
        for cell in rng.permutation(cells)[: rng.integers(1, len(cells) + 1)].tolist():
            size_px = _SIZED_PX * float(np.exp(rng.uniform(low, high)))
            objects.append(_in_cell(rng, cell, size_px))
        yield _rendered(background.resize((_SIZED_PX, _SIZED_PX)), tuple(objects))


def shapes_on_seams(rng: Generator, size_px: int) -> tuple[SceneObject, ...]:
    """Return a shape on each inner corner of the tiles and in the middle of each inner edge."""
    boxes = tile_boxes(GRID, SIZE_WH, OVERLAP)
    columns = boxes[: GRID.columns]
    rows = boxes[:: GRID.columns]
    xs = [right for _, _, right, _ in columns[:-1]]
    ys = [bottom for _, _, _, bottom in rows[:-1]]
    middle_xs = [(left + right) // 2 for left, _, right, _ in columns]
    middle_ys = [(top + bottom) // 2 for _, top, _, bottom in rows]
    places = [*product(xs, ys), *product(xs, middle_ys), *product(middle_xs, ys)]
    return tuple(_shape(rng, (float(x), float(y)), size_px) for x, y in places)


def _drawn(num_scenes: int, seed: int) -> Iterator[tuple[Generator, Image.Image]]:
    """Yield the random numbers and the background of each scene."""
    first = _FIRST_SEED + _SEEDS_APART * seed
    for index in range(num_scenes):
        background = sample_scene(first + index, num_objects=0).background
        yield default_rng((first, index)), render_background(background, _BACKGROUND_PX)


def _rendered(image: Image.Image, objects: tuple[SceneObject, ...]) -> LargeScene:
    for drawn in objects:
        draw_ring(image, outline_xy(drawn), drawn.rgb)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return LargeScene(image, file.getvalue(), objects)


def _pairs(rng: Generator, cells: Iterable[PixelBox]) -> tuple[SceneObject, ...]:
    """Return two shapes side by side, or one above the other, in each cell of the image."""
    half_px = (_SHAPE_PX + _GAP_PX) / 2
    drawn: list[SceneObject] = []
    for place in _in_cells(rng, cells, 2 * _SHAPE_PX):
        x, y = place.center_xy
        offset_xy = (half_px, 0.0) if rng.random() < 0.5 else (0.0, half_px)
        for sign in (-1, 1):
            center_xy = (x + sign * offset_xy[0], y + sign * offset_xy[1])
            drawn.append(_shape(rng, center_xy, _SHAPE_PX))
    return tuple(drawn)


def _in_cells(rng: Generator, cells: Iterable[PixelBox], size_px: int) -> tuple[SceneObject, ...]:
    """Return a shape in each cell of the image, so that none touch."""
    return tuple(_in_cell(rng, cell, size_px) for cell in cells)


def _in_cell(rng: Generator, cell: PixelBox, size_px: float) -> SceneObject:
    """Return a shape at a random place of a cell."""
    left, top, right, bottom = cell
    margin = size_px / 2 + 4
    x = float(rng.uniform(left + margin, right - margin))
    y = float(rng.uniform(top + margin, bottom - margin))
    return _shape(rng, (x, y), size_px)


def _shape(rng: Generator, center_xy: tuple[float, float], size_px: float) -> SceneObject:
    color = COLORS[int(rng.integers(len(COLORS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    return SceneObject(color, shape, "small", COLOR_RGB[color], center_xy, size_px / 2)
