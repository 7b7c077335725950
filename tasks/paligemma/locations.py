"""PaliGemma's location tokens: 1024 bins a side, y before x; bin b is at b / 1023.

Sources: google-research/big_vision@5f95305, big_vision/pp/proj/paligemma/segmentation.py
(quantising rounds), big_vision/evaluators/proj/paligemma/transfers/segmentation.py (bin / 1023).
"""

from tasks.results import BoxXyxy

NUM_BINS = 1024


def quantize(position_px: float, side_px: int) -> int:
    """Return the bin nearest to a position on a side of `side_px` pixels."""
    return min(max(round(position_px * (NUM_BINS - 1) / side_px), 0), NUM_BINS - 1)


def dequantize(bin_index: int, side_px: int) -> float:
    """Return the pixel position of a bin on a side of `side_px` pixels."""
    return bin_index * side_px / (NUM_BINS - 1)


def location_token(bin_index: int) -> str:
    return f"<loc{bin_index:04d}>"


def box_tokens(box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]) -> str:
    """Return the four location tokens of a box, y1 x1 y2 x2."""
    x1, y1, x2, y2 = box_xyxy
    width, height = image_size_wh
    bins = (quantize(y1, height), quantize(x1, width), quantize(y2, height), quantize(x2, width))
    return "".join(map(location_token, bins))
