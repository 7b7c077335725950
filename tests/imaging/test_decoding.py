"""Formats, colours, orientations, sizes and bombs: decoded to upright RGB, or refused."""

import io
import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imaging.containers import ImageError, OversizedImage
from imaging.files import ImageLimits, decode_image, read_header, resize
from tests.support.attack_images import (
    NUM_MANY,
    PARTS,
    animated_webp,
    intact,
    joined,
    repeated_scans,
    split,
)
from tests.support.fake_service import encoded
from tests.support.image_files import (
    LIMITS,
    MAX_PIXELS,
    ORIENTATION,
    RED,
    chunk,
    colour_steps,
    decode,
    differences,
    half_transparent,
    png,
)

WHITE = (255, 255, 255)
DESCRIPTION = 0x010E
X_RESOLUTION = 0x011A
PNG_END = chunk(b"IEND", b"")


def grey16(tones: list[int], extra: bytes = b"") -> bytes:
    """Return a PNG of one row in 16-bit grey, with `extra` chunks before it."""
    return png(len(tones), 1, 16, 0, b"\0" + struct.pack(f">{len(tones)}H", *tones), extra)


@pytest.mark.parametrize(
    ("image_format", "options", "max_mean_difference"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 5),  # lossy: the mean of all pixels
        ("JPEG", {"quality": 95, "progressive": True}, 5),
        ("WEBP", {"quality": 95}, 6),
    ],
)
def test_formats(image_format: str, options: dict[str, object], max_mean_difference: int) -> None:
    decoded = decode(encoded(colour_steps(), image_format, **options))
    assert decoded.mode == "RGB"
    assert decoded.size == (64, 32)
    assert differences(decoded, colour_steps()).mean() <= max_mean_difference


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"garbage" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\xff\xd8\xff"),
        *(b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBPVP8 ", encoded(colour_steps())[8:]),
        *(png(0, 5, 8, 2, b""), png(5, 0, 8, 2, b"")),
    ],
)
def test_other_bytes_are_unsupported(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_image_is_unsupported(image_format: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * part)])


def test_missing_palette_is_unsupported() -> None:
    data = encoded(Image.new("P", (8, 4)))
    start = data.index(b"PLTE") - 4  # a chunk: length, type, content, check sum
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(data[:start] + data[end:])


def palette() -> Image.Image:
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (32, 0, 64, 32))
    return image


def black_and_white() -> Image.Image:
    image = Image.new("1", (64, 32), 0)
    image.paste(1, (32, 0, 64, 32))
    return image


RGB_16 = struct.pack(">6H", 0x1000, 0x8000, 0xF000, 0, 0x4000, 0xFFFF)
TONES = [0, 0x0180, 0x4000, 0x8000, 0xC000, 0xFFFF]
GREY = [(tone >> 8,) * 3 for tone in TONES]
WITHOUT_BLACK = chunk(b"tRNS", struct.pack(">H", 0))


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (encoded(half_transparent("RGBA")), {2: RED, 60: WHITE}),
        (encoded(half_transparent("RGBA"), "WEBP", lossless=True, exact=True), {2: RED, 60: WHITE}),
        (encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))), {0: (255, 127, 127)}),
        (encoded(half_transparent("LA")), {2: (76, 76, 76), 60: WHITE}),
        (encoded(palette(), transparency=1), {2: RED, 60: WHITE}),
        (encoded(colour_steps(), transparency=RED), {2: WHITE, 60: (0, 255, 0)}),
        (encoded(black_and_white()), {0: (0, 0, 0), 63: WHITE}),
        (grey16(TONES), dict(enumerate(GREY))),
        (grey16(TONES, WITHOUT_BLACK), dict(enumerate(GREY))),
        (png(2, 1, 16, 2, b"\0" + RGB_16), {0: (0x10, 0x80, 0xF0), 1: (0, 0x40, 0xFF)}),
    ],
)
def test_colours(data: bytes, pixels: dict[int, tuple[int, ...]]) -> None:
    """Transparent pixels are white, and tones of 16 bits are kept."""
    decoded = decode(data)
    assert {x: decoded.getpixel((x, 0)) for x in pixels} == pixels


def test_cmyk() -> None:
    data = encoded(colour_steps().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert differences(decode(data), colour_steps()).max() <= 8  # lossy in four channels


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(image_format: str, orientation: int) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95, "subsampling": 0}
    data = encoded(colour_steps(), image_format, exif=turned(orientation), **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data)
    assert decoded.size == ((32, 64) if orientation >= 5 else (64, 32))
    assert differences(decoded, expected).max() == 0


@pytest.mark.parametrize("orientation", [4, 5])
def test_orientation_behind_the_pixels(orientation: int) -> None:
    content = turned(orientation).tobytes().removeprefix(b"Exif\0\0")
    data = encoded(colour_steps(), "PNG").removesuffix(PNG_END) + chunk(b"eXIf", content) + PNG_END
    assert decode(data).size == ((32, 64) if orientation >= 5 else (64, 32))


@pytest.mark.parametrize(
    "size_wh", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (1_000_001, 1)]
)
def test_too_many_pixels_are_refused(size_wh: tuple[int, int]) -> None:
    """They are refused by the header, before memory is allocated."""
    data = png(*size_wh, 8, 2, b"\0" * 100)
    decode(encoded(colour_steps()))  # Pillow's plugins are loaded now
    size = f"{size_wh[0]} x {size_wh[1]}"
    tracemalloc.start()
    try:
        with pytest.raises(OversizedImage, match=rf"{size}.*the maximum is {MAX_PIXELS}"):
            decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
def test_resize_equals_that_of_pillow(resample: Image.Resampling) -> None:
    decoded = decode(encoded(colour_steps()))
    pixels = np.asarray(resize(decoded, (30, 50), int(resample)))
    assert (pixels.shape, pixels.dtype.name) == ((50, 30, 3), "uint8")
    assert np.array_equal(pixels, np.asarray(colour_steps().resize((30, 50), resample)))


def test_scans_of_a_jpeg() -> None:
    """A small image may have more of them."""
    bomb = repeated_scans((1000, 1000), 900)
    with pytest.raises(OversizedImage, match="1000 x 1000 pixels has 910 scans; the maximum is 16"):
        read_header(bomb, LIMITS)
    with pytest.raises(OversizedImage, match="has 17 scans; the maximum is 16"):
        read_header(repeated_scans((1000, 1000), 7), LIMITS)
    for side, times in ((1000, 6), (100, 500)):
        assert decode_image(repeated_scans((side, side), times), LIMITS).size == (side, side)


@pytest.mark.parametrize(
    "data",
    [
        *(animated_webp(size_wh) for size_wh in ((2**24, 2), (20_001, 1), (1, 20_001))),
        *(png(*size_wh, 8, 2, b"\0" * 100) for size_wh in ((50_000_000, 1), (20_001, 10))),
    ],
)
def test_long_side_is_refused(data: bytes) -> None:
    with pytest.raises(OversizedImage, match=r"has a side of .* pixels; the maximum is 20000"):
        read_header(data, ImageLimits(50_000_000))


@pytest.mark.parametrize(
    "behind",
    [b"", chunk(b"eXIf", b"II*\0\x08" + bytes(9)), chunk(b"tEXt", b"Raw profile type exif\0")],
    ids=["nothing", "eXIf", "text"],
)
def test_header_needs_no_pixels(behind: bytes) -> None:
    file = png(7000, 7000, 8, 2, b"\0" * 100).removesuffix(PNG_END) + behind + PNG_END
    assert read_header(file, ImageLimits(50_000_000)).size_wh == (7000, 7000)
    with pytest.raises(ImageError):  # there is one to decode
        decode_image(file, ImageLimits(50_000_000))


def checksums_mended(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums that fit, so that mutations come past them."""
    mended = data[:8]
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 8 : position + 8 + length]
        mended += chunk(data[position + 4 : position + 8], body)
        position += 12 + length
    return mended


def decodes_or_refuses(data: bytes) -> bool:
    """Return True for an image, False for an `ImageError`; any other exception escapes."""
    try:
        return decode(data).mode == "RGB"
    except ImageError as error:
        return bool(str(error))


EXIF = turned(6)
EXIF[DESCRIPTION] = "a"
EXIF[X_RESOLUTION] = 72.0
SEEDS = [encoded(colour_steps().resize((8, 4)), "JPEG", exif=EXIF)]
for image, image_format in itertools.product(
    (
        colour_steps(),
        half_transparent("RGBA"),
        colour_steps().convert("P"),
        colour_steps().convert("1"),
    ),
    ("PNG", "WEBP"),
):
    SEEDS.append(encoded(image.resize((8, 4)), image_format, exif=EXIF))


@settings(max_examples=500)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_images(seed: bytes, data: st.DataObject) -> None:
    mutated = bytearray(seed)
    places = st.one_of(st.integers(0, len(seed) - 1), st.integers(0, min(120, len(seed) - 1)))
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        mutated[place] = value
    is_png = seed.startswith(b"\x89PNG")
    assert decodes_or_refuses(checksums_mended(bytes(mutated)) if is_png else bytes(mutated))


@settings(max_examples=200)
@given(st.sampled_from(sorted(PARTS)), st.data())
def test_parts_in_any_order(image_format: str, data: st.DataObject) -> None:
    parts = split(intact(image_format))
    part = st.sampled_from([*parts, *PARTS[image_format]])
    runs = st.tuples(st.integers(1, len(parts)), part, st.sampled_from([0, 1, 2, 50, NUM_MANY]))
    for place, run, times in data.draw(st.lists(runs, min_size=1, max_size=4)):
        replaced = data.draw(st.integers(0, 1))
        parts[place : place + replaced] = [run * min(times, 2_000_000 // len(run))]
    file = joined(parts)
    assert decodes_or_refuses(file)
