"""COCO's run lengths to those of Label Studio's BrushLabels, which are of RGBA bytes, row by row.

Bits: 32 number of bytes, 5 word size - 1, 4 x 4 field widths - 1, then the runs: 1 bit "repeated",
2 bits index of the width, the length - 1 in that width, 8 bits value. A run longer than the widest
is split. Source: thi-ng/umbrella packages/rle-pack, which Label Studio uses;
HumanSignal/label-studio-sdk label_studio_sdk/converter/brush.py (decode_rle) reads the same.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from tasks.results import RunLengthMask
from tasks.run_length import decode_mask

_CHANNELS = 4
_WORD_BITS = 8
_WIDTHS = (3, 4, 8, 16)
_MAX_RUN = 2 ** _WIDTHS[-1]
_OPAQUE = 255


def brush_rle(mask: RunLengthMask) -> list[int]:
    """Return the bytes of a mask: 255 in all channels within it, 0 elsewhere."""
    pixels = decode_mask(mask).ravel()
    header = f"{pixels.size * _CHANNELS:032b}{_WORD_BITS - 1:05b}" + "".join(
        f"{width - 1:04b}" for width in _WIDTHS
    )
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=pixels.size) * _CHANNELS
    values = np.where(pixels[starts], _OPAQUE, 0)
    runs = chain.from_iterable(map(_run, lengths.tolist(), values.tolist()))
    bits = np.frombuffer((header + "".join(runs)).encode(), dtype=np.uint8) - ord("0")
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def _run(length: int, value: int) -> Iterator[str]:
    while length > 0:
        part = min(length, _MAX_RUN)
        index = next(index for index, width in enumerate(_WIDTHS) if part <= 2**width)
        yield f"1{index:02b}{part - 1:0{_WIDTHS[index]}b}{value:0{_WORD_BITS}b}"
        length -= part
