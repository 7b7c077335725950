import tracemalloc

import numpy as np
import pytest
from PIL import Image

from imaging.errors import OversizedImage, UnreadableImage
from imaging.files import ImageLimits, decode_image, resize
from tests.support.fake_service import encoded
from tests.support.image_files import MAX_PIXELS, RED, colour_steps, decode, png


@pytest.mark.parametrize(
    "size_wh", [(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (1_000_001, 1)]
)
def test_too_many_pixels_are_refused_by_the_header(size_wh: tuple[int, int]) -> None:
    data = png(*size_wh, 8, 2, b"\0" * 100)
    decode(encoded(colour_steps()))  # Pillow's plugins are loaded now
    tracemalloc.start()
    try:
        with pytest.raises(
            OversizedImage, match=rf"{size_wh[0]} x {size_wh[1]}.*the maximum is {MAX_PIXELS}"
        ):
            decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_too_many_pixels_are_refused_in_the_other_formats(image_format: str) -> None:
    with pytest.raises(OversizedImage):
        decode_image(encoded(colour_steps(), image_format), ImageLimits(64 * 32 - 1))


def test_maximum_number_of_pixels_is_decoded() -> None:
    assert decode_image(encoded(colour_steps()), ImageLimits(64 * 32)).size == (64, 32)


def test_limit_above_that_of_pillow_applies() -> None:
    data = png(20_000, 10_000, 1, 0, b"\0" * 10)  # 200 million pixels, over Pillow's 179 million
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data, ImageLimits(200_000_000))


@pytest.mark.parametrize(
    "resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST]
)
def test_resize_equals_that_of_pillow(resample: Image.Resampling) -> None:
    decoded = decode(encoded(colour_steps()))
    pixels = np.asarray(resize(decoded, (30, 50), int(resample)))
    assert (pixels.shape, pixels.dtype.name) == ((50, 30, 3), "uint8")
    assert np.array_equal(pixels, np.asarray(colour_steps().resize((30, 50), resample)))


@pytest.mark.parametrize("size_wh", [(1, 1), (5000, 1), (1, 5000)])
def test_extreme_shapes_are_resized(size_wh: tuple[int, int]) -> None:
    decoded = decode(encoded(Image.new("RGB", size_wh, RED)))
    pixels = np.asarray(resize(decoded, (24, 16), Image.Resampling.BICUBIC))
    assert pixels.reshape(-1, 3).tolist() == [list(RED)] * (24 * 16)
