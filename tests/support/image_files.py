"""Image files for tests of decoding, some written byte by byte."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import ImageLimits, decode_image, read_header

MAX_PIXELS = 1_000_000
LIMITS = ImageLimits(MAX_PIXELS)
ORIENTATION = 0x0112
RED = (255, 0, 0)


def decode(data: bytes) -> Image.Image:
    """Return the decoded image; its size must be that of the header."""
    header = read_header(data, LIMITS)
    rgb = decode_image(data, LIMITS)
    assert header.size_wh == rgb.size
    return rgb


def colour_steps() -> Image.Image:
    """Four flat colours: lossy formats keep them, and a rotation is visible."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste((0, 255, 0), (32, 0, 64, 16))
    image.paste((0, 0, 255), (0, 16, 32, 32))
    image.paste((250, 250, 0), (32, 16, 64, 32))
    return image


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png(
    width: int, height: int, bit_depth: int, colour_type: int, rows: bytes, extra: bytes = b""
) -> bytes:
    """Return a PNG file: `rows` with their filter bytes, `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def differences(actual: Image.Image, expected: Image.Image) -> NDArray[np.int_]:
    return np.abs(np.asarray(actual, dtype=np.int_) - np.asarray(expected, dtype=np.int_))


def half_transparent(mode: str) -> Image.Image:
    """Left half red and opaque, right half red and transparent."""
    image = Image.new("RGBA", (64, 32), (*RED, 255))
    image.paste((*RED, 0), (32, 0, 64, 32))
    return image.convert(mode)
