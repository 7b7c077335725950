import struct

import pytest
from PIL import Image

from tests.support.fake_service import encoded
from tests.support.image_files import (
    RED,
    WHITE,
    chunk,
    colour_steps,
    decode,
    differences,
    grey16,
    half_transparent,
    png,
)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparent_pixels_become_white(image_format: str) -> None:
    image = decode(encoded(half_transparent("RGBA"), image_format, lossless=True, exact=True))
    assert (image.getpixel((2, 2)), image.getpixel((60, 2))) == (RED, WHITE)


def test_half_transparent_pixels_are_blended_with_white() -> None:
    pixel = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))).getpixel((0, 0))
    assert pixel == (255, 127, 127)


def test_grey_with_alpha_becomes_white_where_transparent() -> None:
    image = decode(encoded(half_transparent("LA")))
    assert (image.getpixel((2, 2)), image.getpixel((60, 2))) == ((76, 76, 76), WHITE)


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (32, 0, 64, 32))
    decoded = decode(encoded(image, transparency=1))
    assert (decoded.getpixel((2, 2)), decoded.getpixel((60, 2))) == (RED, WHITE)


def test_colour_key_of_an_rgb_png_becomes_white() -> None:
    image = colour_steps()
    decoded = decode(encoded(image, transparency=RED))
    assert (decoded.getpixel((2, 2)), decoded.getpixel((60, 2))) == (WHITE, (0, 255, 0))


def test_cmyk_jpeg_is_converted_to_rgb() -> None:
    data = encoded(colour_steps().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert differences(decode(data), colour_steps()).max() <= 8  # lossy in four channels


def test_16_bit_grey_keeps_its_tones() -> None:
    tones = [0, 0x0180, 0x4000, 0x8000, 0xC000, 0xFFFF]
    image = decode(grey16(tones))
    assert [image.getpixel((x, 0)) for x in range(len(tones))] == [
        (tone >> 8,) * 3 for tone in tones
    ]


def test_16_bit_grey_with_a_transparent_tone_keeps_its_tones() -> None:
    tones = [0, 0x4000, 0x8000, 0xFFFF]
    image = decode(grey16(tones, chunk(b"tRNS", struct.pack(">H", 0))))
    assert [image.getpixel((x, 0))[0] for x in range(1, 4)] == [0x40, 0x80, 0xFF]  # type: ignore[index]


def test_16_bit_rgb_keeps_its_tones() -> None:
    rows = b"\0" + struct.pack(">6H", 0x1000, 0x8000, 0xF000, 0, 0x4000, 0xFFFF)
    image = decode(png(2, 1, 16, 2, rows))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0x10, 0x80, 0xF0), (0, 0x40, 0xFF)]


def test_1_bit_image_is_black_and_white() -> None:
    image = Image.new("1", (16, 4), 0)
    image.paste(1, (8, 0, 16, 4))
    decoded = decode(encoded(image))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((15, 0))) == ((0, 0, 0), WHITE)
