"""Small files that would take long to decode, or much memory: refused by their header."""

import pytest
from PIL import Image

from imaging.errors import OversizedImage, UnreadableImage
from imaging.files import ImageLimits, decode_image, read_header
from tests.support.attack_images import animated_webp, repeated_scans
from tests.support.fake_service import encoded
from tests.support.image_files import LIMITS, chunk, png

PNG_END = chunk(b"IEND", b"")


def test_jpeg_of_many_scans_is_refused_by_its_header() -> None:
    bomb = repeated_scans((1000, 1000), 900)
    with pytest.raises(
        OversizedImage, match="has 910 scans of 1000 x 1000 pixels; the maximum is 16"
    ):
        read_header(bomb, LIMITS)


@pytest.mark.parametrize("size_wh", [(1000, 1000), (64, 32)])
def test_progressive_jpeg_is_decoded(size_wh: tuple[int, int]) -> None:
    assert decode_image(repeated_scans(size_wh, 0), LIMITS).size == size_wh


def test_small_jpeg_may_have_more_scans() -> None:
    assert decode_image(repeated_scans((100, 100), 500), LIMITS).size == (100, 100)


@pytest.mark.parametrize("size_wh", [(2**24, 2), (20_001, 1), (1, 20_001)])
def test_animation_with_a_long_side_is_refused(size_wh: tuple[int, int]) -> None:
    with pytest.raises(OversizedImage):
        read_header(animated_webp(size_wh), ImageLimits(50_000_000))


def test_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(animation, LIMITS).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size_wh", [(50_000_000, 1), (20_001, 10)])
def test_png_with_a_long_side_is_refused(size_wh: tuple[int, int]) -> None:
    with pytest.raises(OversizedImage, match="the maximum of a side is 20000"):
        read_header(png(*size_wh, 8, 2, b"\0" * 100), ImageLimits(50_000_000))


@pytest.mark.parametrize(
    "behind",
    [b"", chunk(b"eXIf", b"II*\0\x08" + bytes(9)), chunk(b"tEXt", b"Raw profile type exif\0")],
    ids=["nothing", "eXIf", "text"],
)
def test_no_pixel_of_a_png_is_decoded_for_an_orientation_behind_the_pixels(behind: bytes) -> None:
    file = png(7000, 7000, 8, 2, b"\0" * 100).removesuffix(PNG_END) + behind + PNG_END
    assert read_header(file, ImageLimits(50_000_000)).size_wh == (7000, 7000)
    with pytest.raises(UnreadableImage):  # there is one to decode
        decode_image(file, ImageLimits(50_000_000))
