"""Finds the flat parts of an image, in which there is nothing to find: paper, or an even sky.

A part is flat if the pixels of no square of 32 x 32 that begins in it differ by more than 8 levels
in a colour channel. Squares lie on a grid of 16 pixels: a shading passes, an edge does not.
"""

from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray

from imaging.files import PixelBox
from service.images.decoding import LazyImage, in_thread
from service.images.views import ImageView
from wire.pixels import Pixels

_CELL_PX = 16
_MAX_LEVELS = 8
_STRIP_BYTES = 8_000_000

Busy = NDArray[np.bool_]  # (rows, columns) of cells: a square that begins there is not flat


async def flat_parts(image: LazyImage, parts: Sequence[PixelBox]) -> list[bool]:
    """Return which parts of an image are flat; decode it if none is known yet."""
    left = 0
    top = 0
    if isinstance(image, ImageView):
        left, top, _, _ = image.box
        image = image.whole
    known = image.decoder.busy_cells
    busy = known.get(image.header.digest)
    if busy is None:
        width, _ = image.header.size_wh
        num_rows = max(1, _STRIP_BYTES // (width * 3 * _CELL_PX)) * _CELL_PX
        lows: list[Pixels] = []
        highs: list[Pixels] = []
        async with aclosing(image.strips(num_rows)) as strips:
            async for strip in strips:
                lows.append(await in_thread(_of_cells, strip, np.minimum))
                highs.append(await in_thread(_of_cells, strip, np.maximum))
        busy = await in_thread(busy_cells, np.concatenate(lows), np.concatenate(highs))
        known[image.header.digest] = busy
    flat: list[bool] = []
    for x1, y1, x2, y2 in parts:
        rows = slice((top + y1) // _CELL_PX, (top + y2 - 1) // _CELL_PX + 1)
        columns = slice((left + x1) // _CELL_PX, (left + x2 - 1) // _CELL_PX + 1)
        flat.append(not busy[rows, columns].any())
    return flat


def busy_cells(lows: Pixels, highs: Pixels) -> Busy:
    """Return which squares of 2 x 2 cells are not flat, from the extremes (rows, columns, 3)."""
    low = _of_squares(lows, np.minimum)
    high = _of_squares(highs, np.maximum)
    busy: Busy = np.any(high - low > _MAX_LEVELS, axis=2)
    return busy


def _of_cells(pixels: Pixels, extreme: np.ufunc) -> Pixels:
    """Return the extreme of each cell of pixels (H, W, 3), as (rows, columns, 3)."""
    height, width, _ = pixels.shape
    rows = extreme.reduceat(pixels.reshape(height, -1), range(0, height, _CELL_PX), axis=0)
    of_rows = rows.reshape(len(rows), width, 3)
    cells: Pixels = extreme.reduceat(of_rows, range(0, width, _CELL_PX), axis=1)
    return cells


def _of_squares(cells: Pixels, extreme: np.ufunc) -> NDArray[np.int16]:
    """Return the extreme of each cell and its neighbours to the right and below."""
    padded = np.pad(cells.astype(np.int16), ((0, 1), (0, 1), (0, 0)), mode="edge")
    beside = extreme(padded[:, :-1], padded[:, 1:])
    squares: NDArray[np.int16] = extreme(beside[:-1], beside[1:])
    return squares
