"""Image files made to be small and to take long to decode."""

import io
import struct

from PIL import Image


def repeated_scans(size_wh: tuple[int, int], times: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    Image.new("RGB", size_wh, (128, 128, 128)).save(file, "JPEG", progressive=True)
    data, end = file.getvalue()[:-2], b"\xff\xd9"
    return data + data[data.rfind(b"\xff\xda") :] * times + end


def animated_webp(size_wh: tuple[int, int]) -> bytes:
    """Return an animation of one tiny frame on a canvas of any size."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "WEBP", lossless=True)
    frame = _u24(0, 0, 0, 0, 100) + b"\0" + file.getvalue()[12:]  # at (0, 0), 1 x 1, 100 ms
    chunks = _chunk(b"VP8X", b"\x02\0\0\0" + _u24(*(side - 1 for side in size_wh)))
    chunks += _chunk(b"ANIM", b"\0" * 6) + _chunk(b"ANMF", frame)
    return _chunk(b"RIFF", b"WEBP" + chunks)


def _u24(*values: int) -> bytes:
    return b"".join(struct.pack("<I", value)[:3] for value in values)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
