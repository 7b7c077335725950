import io
import itertools
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.errors import ImageTooLarge, ServiceError, UnsupportedImage
from service.images import RgbImage, decode_image, resize
from tests.support.fake_service import encoded

MAX_PIXELS = 1_000_000
ORIENTATION, X_RESOLUTION, DESCRIPTION = 0x0112, 0x011A, 0x010E
RED, WHITE = (255, 0, 0), (255, 255, 255)


def decode(data: bytes) -> RgbImage:
    return decode_image(data, MAX_PIXELS)


def colour_steps() -> Image.Image:
    """Four fields of flat colour, so that lossy formats keep them near and turning shows."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste((0, 255, 0), (32, 0, 64, 16))
    image.paste((0, 0, 255), (0, 16, 32, 32))
    image.paste((250, 250, 0), (32, 16, 64, 32))
    return image


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG file written by hand: `rows` with their filter bytes, `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey16_rows(tones: list[int]) -> bytes:
    return b"\0" + struct.pack(f">{len(tones)}H", *tones)


def differences(actual: Image.Image, expected: Image.Image) -> NDArray[np.int_]:
    return np.abs(np.asarray(actual, dtype=np.int_) - np.asarray(expected, dtype=np.int_))


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
def test_jpeg_png_and_webp_are_read(image_format: str, options: dict[str, object], max_mean_difference: int) -> None:
    decoded = decode(encoded(colour_steps(), image_format, **options))
    assert decoded.image.mode == "RGB"
    assert decoded.size_wh == (64, 32)
    assert differences(decoded.image, colour_steps()).mean() <= max_mean_difference


def test_decoding_takes_the_time_that_it_says() -> None:
    start_s = time.monotonic()
    decoded = decode(encoded(colour_steps()))
    assert 0 < decoded.decode_s <= time.monotonic() - start_s


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PDF", "EPS"])
def test_other_formats_are_unsupported(image_format: str) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WEBP"):
        decode(encoded(colour_steps(), image_format))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"garbage" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        encoded(colour_steps())[8:],
        png(0, 5, 8, 2, b""),
        png(5, 0, 8, 2, b""),
    ],
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage) as caught:
        decode(data)
    assert caught.value.param == "image"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_image_is_unsupported(image_format: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    with pytest.raises(UnsupportedImage):
        decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_comes_upright_by_its_exif_orientation(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95, "subsampling": 0}
    data = encoded(colour_steps(), image_format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data)
    assert decoded.size_wh == ((32, 64) if orientation >= 5 else (64, 32))
    assert differences(decoded.image, expected).max() == 0


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_leaves_the_image_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert decode(encoded(colour_steps(), exif=exif)).size_wh == (64, 32)


def exif_with_text_as_rational(orientation: int) -> bytes:
    """Return EXIF whose X resolution is a text of one byte: cameras' software writes worse."""
    entries = [(ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)), (X_RESOLUTION, 2, 2, b"7\0\0\0")]
    ifd = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + ifd + struct.pack("<I", 0)


def exif_with_orientation_of_type(kind: int, value: bytes) -> bytes:
    entry = struct.pack("<HHI", ORIENTATION, kind, 1) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def test_photo_with_odd_exif_tags_still_comes_upright() -> None:
    data = encoded(colour_steps(), "JPEG", exif=exif_with_text_as_rational(6))
    assert decode(data).size_wh == (32, 64)


@pytest.mark.parametrize("kind", [1, 2, 4, 7, 9, 11])
def test_orientation_of_an_odd_type_is_no_defect_of_the_service(kind: int) -> None:
    data = encoded(colour_steps(), "JPEG", exif=exif_with_orientation_of_type(kind, b"\6\0\0\0"))
    assert decode(data).size_wh in ((64, 32), (32, 64))


def half_transparent(mode: str) -> Image.Image:
    """Left half red and opaque, right half red and transparent."""
    image = Image.new("RGBA", (64, 32), (*RED, 255))
    image.paste((*RED, 0), (32, 0, 64, 32))
    return image.convert(mode)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_transparent_pixels_become_white(image_format: str) -> None:
    image = decode(encoded(half_transparent("RGBA"), image_format, lossless=True, exact=True)).image
    assert (image.getpixel((2, 2)), image.getpixel((60, 2))) == (RED, WHITE)


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    pixel = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))).image.getpixel((0, 0))
    assert pixel == (255, 127, 127)


def test_grey_with_alpha_becomes_white_where_transparent() -> None:
    image = decode(encoded(half_transparent("LA"))).image
    assert (image.getpixel((2, 2)), image.getpixel((60, 2))) == ((76, 76, 76), WHITE)


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (32, 0, 64, 32))
    decoded = decode(encoded(image, transparency=1)).image
    assert (decoded.getpixel((2, 2)), decoded.getpixel((60, 2))) == (RED, WHITE)


def test_colour_key_of_an_rgb_png_becomes_white() -> None:
    image = colour_steps()
    decoded = decode(encoded(image, transparency=RED)).image
    assert (decoded.getpixel((2, 2)), decoded.getpixel((60, 2))) == (WHITE, (0, 255, 0))


def test_cmyk_jpeg_is_read_as_colours() -> None:
    data = encoded(colour_steps().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert differences(decode(data).image, colour_steps()).max() <= 8  # lossy in four channels


def test_16_bit_grey_keeps_its_tones() -> None:
    tones = [0, 0x0180, 0x4000, 0x8000, 0xC000, 0xFFFF]
    image = decode(png(len(tones), 1, 16, 0, grey16_rows(tones))).image
    assert [image.getpixel((x, 0)) for x in range(len(tones))] == [(tone >> 8,) * 3 for tone in tones]


def test_16_bit_grey_with_a_transparent_tone_keeps_the_others() -> None:
    tones = [0, 0x4000, 0x8000, 0xFFFF]
    data = png(len(tones), 1, 16, 0, grey16_rows(tones), chunk(b"tRNS", struct.pack(">H", 0)))
    image = decode(data).image
    assert [image.getpixel((x, 0))[0] for x in range(1, 4)] == [0x40, 0x80, 0xFF]  # type: ignore[index]


def test_16_bit_rgb_keeps_its_tones() -> None:
    rows = b"\0" + struct.pack(">6H", 0x1000, 0x8000, 0xF000, 0, 0x4000, 0xFFFF)
    image = decode(png(2, 1, 16, 2, rows)).image
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0x10, 0x80, 0xF0), (0, 0x40, 0xFF)]


def test_1_bit_image_is_black_and_white() -> None:
    image = Image.new("1", (16, 4), 0)
    image.paste(1, (8, 0, 16, 4))
    decoded = decode(encoded(image)).image
    assert (decoded.getpixel((0, 0)), decoded.getpixel((15, 0))) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "MPO"])
def test_first_frame_of_several_is_taken(image_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert differences(decode(data).image, frames[0]).max() <= 2  # MPO is lossy


@pytest.mark.parametrize("size_wh", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (1_000_001, 1)])
def test_too_many_pixels_are_refused_from_the_header_alone(size_wh: tuple[int, int]) -> None:
    data = png(*size_wh, 8, 2, b"\0" * 100)
    decode(encoded(colour_steps()))  # Pillow's plugins are loaded now
    tracemalloc.start()
    start_s = time.monotonic()
    try:
        with pytest.raises(ImageTooLarge, match=rf"{size_wh[0]} x {size_wh[1]}.*at most {MAX_PIXELS}"):
            decode(data)
        took_s, (_, peak_bytes) = time.monotonic() - start_s, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < 0.05
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_too_many_pixels_are_refused_in_the_other_formats(image_format: str) -> None:
    with pytest.raises(ImageTooLarge):
        decode_image(encoded(colour_steps(), image_format), max_pixels=64 * 32 - 1)


def test_exactly_the_most_pixels_are_read() -> None:
    assert decode_image(encoded(colour_steps()), max_pixels=64 * 32).size_wh == (64, 32)


def test_limit_above_pillows_own_decides() -> None:
    data = png(20_000, 10_000, 1, 0, b"\0" * 10)  # 200 million pixels, over Pillow's 179 million
    with pytest.raises(UnsupportedImage, match="cut off"):
        decode_image(data, max_pixels=200_000_000)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST])
def test_resize_is_that_of_pillow(resample: Image.Resampling) -> None:
    decoded = decode(encoded(colour_steps()))
    pixels = resize(decoded, (30, 50), int(resample))
    assert (pixels.shape, pixels.dtype.name) == ((50, 30, 3), "uint8")
    assert np.array_equal(pixels, np.asarray(colour_steps().resize((30, 50), resample)))


@pytest.mark.parametrize("size_wh", [(1, 1), (5000, 1), (1, 5000)])
def test_extreme_shapes_are_resized(size_wh: tuple[int, int]) -> None:
    decoded = decode(encoded(Image.new("RGB", size_wh, RED)))
    pixels = resize(decoded, (24, 16), Image.Resampling.BICUBIC)
    assert pixels.reshape(-1, 3).tolist() == [list(RED)] * (24 * 16)


def checksums_mended(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums that fit, so that mutations come past them."""
    mended, position = data[:8], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 8 : position + 8 + length]
        mended += chunk(data[position + 4 : position + 8], body)
        position += 12 + length
    return mended


def decodes_or_refuses(data: bytes) -> bool:
    """Say whether the bytes are an image or an error of the service's tree; anything else escapes."""
    try:
        return decode(data).image.mode == "RGB"
    except ServiceError as error:
        return bool(error.message)


EXIF = Image.Exif()
EXIF[ORIENTATION], EXIF[DESCRIPTION], EXIF[X_RESOLUTION] = 6, "a", 72.0
SEEDS = [
    encoded(image.resize((8, 4)), image_format, exif=EXIF)
    for image, image_format in itertools.product(
        (colour_steps(), half_transparent("RGBA"), colour_steps().convert("P"), colour_steps().convert("1")),
        ("PNG", "WEBP"),
    )
] + [encoded(colour_steps().resize((8, 4)), "JPEG", exif=EXIF)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of EXIF that it cannot read
@settings(deadline=None)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBP"]), st.binary(max_size=300)
)
def test_random_bytes_are_an_image_or_an_error_of_the_service(start: bytes, rest: bytes) -> None:
    assert decodes_or_refuses(start + rest)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=500, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_images_are_an_image_or_an_error_of_the_service(seed: bytes, data: st.DataObject) -> None:
    mutated = bytearray(seed)
    places = st.one_of(st.integers(0, len(seed) - 1), st.integers(0, min(120, len(seed) - 1)))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        mutated[place] = value
    is_png = seed.startswith(b"\x89PNG")
    assert decodes_or_refuses(checksums_mended(bytes(mutated)) if is_png else bytes(mutated))
