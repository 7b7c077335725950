"""Florence-2's location tokens: 1000 bins a side, `<loc_0>` to `<loc_999>`, x before y.

A bin is decoded to its centre.

Source: transformers, models/florence2/processing_florence2.py (quantize, dequantize).
"""

import math

from tasks.results import BoxXyxy

NUM_BINS = 1000


def quantize(position_px: float, side_px: int) -> int:
    """Return the bin of a position on a side of `side_px` pixels."""
    return min(max(math.floor(position_px * NUM_BINS / side_px), 0), NUM_BINS - 1)


def dequantize(bin_index: int, side_px: int) -> float:
    """Return the pixel position at the centre of a bin on a side of `side_px` pixels."""
    return (bin_index + 0.5) * side_px / NUM_BINS


def location_token(bin_index: int) -> str:
    return f"<loc_{bin_index}>"


def box_tokens(box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]) -> str:
    """Return the four location tokens of a box."""
    return "".join(
        location_token(quantize(p, s)) for p, s in zip(box_xyxy, image_size_wh * 2, strict=True)
    )
