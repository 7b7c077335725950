"""A mask decoder's 64 x 64 field placed in its box: as a mask of the whole image, or as polygons.

The object is where the field is above 0. Its samples are centred in the 64 x 64 cells of the box;
between them it is bilinear, outside them constant.
"""

import contourpy
import numpy as np
from numpy.typing import NDArray

from tasks.paligemma.masks import FIELD_SIDE, Floats
from tasks.results import BoxXyxy, Ring


def mask_in_image(
    field: Floats, box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return the mask (H, W): pixels whose centre is in the box and has a field above 0."""
    x1, y1, x2, y2 = box_xyxy
    width, height = image_size_wh
    rows = _pixels_between(y1, y2, height)
    columns = _pixels_between(x1, x2, width)
    mask = np.zeros((height, width), dtype=np.bool_)
    values = _interpolation(rows, y1, y2) @ field @ _interpolation(columns, x1, x2).T
    mask[rows.start : rows.stop, columns.start : columns.stop] = values > 0
    return mask


def rings_in_box(field: Floats, box_xyxy: BoxXyxy) -> tuple[Ring, ...]:
    """Return the outlines of where the field is above 0, in pixels of the image.

    Outer rings run clockwise as seen on the screen, rings of holes anticlockwise; the even-odd rule
    gives the mask.
    """
    x1, y1, x2, y2 = box_xyxy
    # Beyond the last samples the field is constant up to the border of the box; a negative sample
    # on the border itself closes a ring that reaches it.
    closed = np.pad(np.pad(field, 1, mode="edge"), 1, constant_values=-1)
    end = [FIELD_SIDE, FIELD_SIDE]
    places = np.concatenate(([0, 0], np.arange(0.5, FIELD_SIDE), end)) / FIELD_SIDE
    xs = x1 + places * (x2 - x1)
    ys = y1 + places * (y2 - y1)
    separate = contourpy.LineType.Separate
    generator = contourpy.contour_generator(xs, ys, closed, line_type=separate)
    rings: list[Ring] = []
    for points in generator.lines(0.0):
        # rounding in contourpy's sum of two shares puts points of the border beyond it
        line = np.clip(np.asarray(points), (x1, y1), (x2, y2))
        # each point once where neighbours are equal; the last one is the first again
        moves = np.any(line[1:] != line[:-1], axis=1)
        rings.append(tuple((float(x), float(y)) for x, y in line[1:][moves]))
    return tuple(ring for ring in rings if len(ring) > 2)


def _pixels_between(start_px: float, end_px: float, side_px: int) -> range:
    """Return the pixels whose centres lie from `start_px` to before `end_px`."""
    return range(max(0, int(np.ceil(start_px - 0.5))), min(side_px, int(np.ceil(end_px - 0.5))))


def _interpolation(pixels: range, start_px: float, end_px: float) -> Floats:
    """Return the weights (pixels, 64) of the samples at each pixel of a side of the box."""
    places = (np.asarray(pixels) + 0.5 - start_px) * FIELD_SIDE / (end_px - start_px) - 0.5
    distances = np.abs(places.clip(0, FIELD_SIDE - 1)[:, None] - np.arange(FIELD_SIDE))
    # a sample's weight is 0 from its neighbours on
    weights: Floats = (1 - distances).clip(min=0).astype(np.float32)
    return weights
