import numpy as np
import pytest
from PIL import Image

from imaging.errors import UnreadableImage
from tests.support.fake_service import encoded
from tests.support.image_files import RED, colour_steps, decode, differences, png


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
def test_jpeg_png_and_webp_are_decoded(
    image_format: str, options: dict[str, object], max_mean_difference: int
) -> None:
    decoded = decode(encoded(colour_steps(), image_format, **options))
    assert decoded.mode == "RGB"
    assert decoded.size == (64, 32)
    assert differences(decoded, colour_steps()).mean() <= max_mean_difference


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_pixels_in_rgb_are_not_copied(image_format: str) -> None:
    data = encoded(colour_steps(), image_format)
    before = Image.core.get_stats()["new_count"]  # type: ignore[attr-defined]
    decode(data)
    after = Image.core.get_stats()["new_count"]  # type: ignore[attr-defined]
    assert after == before + 1


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PDF", "EPS"])
def test_other_formats_are_unsupported(image_format: str) -> None:
    with pytest.raises(UnreadableImage, match="JPEG, PNG, WEBP"):
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
def test_other_bytes_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_image_is_unsupported(image_format: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), image_format)
    with pytest.raises(UnreadableImage):
        decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "MPO"])
def test_first_frame_of_an_animation_is_decoded(image_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, (0, 0, 255))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert differences(decode(data), frames[0]).max() <= 2  # MPO is lossy


def test_palette_image_without_its_palette_is_unsupported() -> None:
    data = encoded(Image.new("P", (8, 4)))
    start = data.index(b"PLTE") - 4  # a chunk: length, type, content, check sum
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        decode(data[:start] + data[end:])
