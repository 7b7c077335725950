"""Finds the flat parts of an image, in which there is nothing to find: paper, or an even sky.

A part is flat if no square of 32 x 32 pixels that begins in it has an edge. Squares lie on a grid
of 16 pixels. In a flat square the levels of a colour channel differ by at most 8, so that a shading
passes. In a noisy image its pixels may differ by more, up to 24 levels as the noise requires, but
not the means of its blocks of 4 x 4 pixels: any thing of 8 pixels fills such a block.
"""

from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import PixelBox
from service.images.decoding import LazyImage, in_thread
from service.images.views import ImageView
from wire.pixels import Pixels

_CELL_PX = 16
_BLOCK_PX = 4
_MAX_LEVELS = 8
_MAX_NOISE_LEVELS = 24
# A quarter of an image without an edge shows its noise; some squares have more of it by chance
_QUIET_PERCENT = 25
_NOISE_FACTOR = 2.5
_STRIP_BYTES = 1_000_000  # larger memory is new, and zeroed, for each strip

Busy = NDArray[np.bool_]  # (rows, columns) of cells: a square that begins there is not flat
# (rows, columns, 6) of cells: an extreme of the channels of their pixels, then of their blocks
Extremes = NDArray[np.uint8]


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
        lows: list[Extremes] = []
        highs: list[Extremes] = []
        async with aclosing(image.strips(num_rows)) as strips:
            async for strip in strips:
                low, high = await in_thread(_extremes, strip)
                lows.append(low)
                highs.append(high)
        busy = await in_thread(busy_cells, np.concatenate(lows), np.concatenate(highs))
        known[image.header.digest] = busy
    flat: list[bool] = []
    for x1, y1, x2, y2 in parts:
        rows = slice((top + y1) // _CELL_PX, (top + y2 - 1) // _CELL_PX + 1)
        columns = slice((left + x1) // _CELL_PX, (left + x2 - 1) // _CELL_PX + 1)
        flat.append(not busy[rows, columns].any())
    return flat


def busy_cells(lows: Extremes, highs: Extremes) -> Busy:
    """Return which squares of 2 x 2 cells are not flat."""
    levels = _of_squares(highs, np.maximum) - _of_squares(lows, np.minimum)
    of_pixels = levels[:, :, :3].max(axis=2)
    of_blocks = levels[:, :, 3:].max(axis=2)
    noise = _NOISE_FACTOR * np.percentile(of_pixels, _QUIET_PERCENT)
    max_of_pixels = max(_MAX_LEVELS, min(_MAX_NOISE_LEVELS, noise))
    busy: Busy = (of_pixels > max_of_pixels) | (of_blocks > _MAX_LEVELS)
    return busy


def _extremes(pixels: Pixels) -> tuple[Extremes, Extremes]:
    """Return the least and the greatest levels in each cell of pixels (H, W, 3)."""
    blocks: Pixels = np.asarray(Image.fromarray(pixels).reduce(_BLOCK_PX))
    num_blocks = _CELL_PX // _BLOCK_PX
    extremes: list[Extremes] = []
    for extreme in (np.minimum, np.maximum):
        of_pixels = _of_cells(pixels, _CELL_PX, extreme)
        of_blocks = _of_cells(blocks, num_blocks, extreme)
        extremes.append(np.concatenate([of_pixels, of_blocks], axis=2))
    low, high = extremes
    return low, high


def _of_cells(pixels: Pixels, cell_px: int, extreme: np.ufunc) -> Pixels:
    """Return the extreme of each cell of pixels (H, W, 3), as (rows, columns, 3)."""
    height, width, _ = pixels.shape
    num_full = height // cell_px
    full, rest = np.split(pixels.reshape(height, -1), [num_full * cell_px])
    # A reduction over an axis of known length is 20 times as fast as `reduceat`
    rows = extreme.reduce(full.reshape(num_full, cell_px, 3 * width), axis=1)
    if len(rest):
        rows = np.concatenate([rows, extreme.reduce(rest, axis=0, keepdims=True)])
    of_rows = rows.reshape(len(rows), width, 3)
    cells: Pixels = extreme.reduceat(of_rows, range(0, width, cell_px), axis=1)
    return cells


def _of_squares(cells: Extremes, extreme: np.ufunc) -> NDArray[np.int16]:
    """Return the extreme of each cell and its neighbours to the right and below."""
    padded = np.pad(cells.astype(np.int16), ((0, 1), (0, 1), (0, 0)), mode="edge")
    beside = extreme(padded[:, :-1], padded[:, 1:])
    squares: NDArray[np.int16] = extreme(beside[:-1], beside[1:])
    return squares
