"""A part of an image in which nothing can be seen is flat."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imaging.files import ImageLimits, PixelBox
from service.images.decoding import ImageDecoder, ImageView, LazyImage
from service.inference.tiled_answers import flat_parts
from tests.support.fake_service import encoded
from wire.pixels import Pixels

SIZE_WH = (200, 100)
HALVES = ((0, 0, 100, 100), (100, 0, 200, 100))
PAPER = Image.new("RGB", SIZE_WH, (250, 248, 246))


def drawn(box: PixelBox, fill: tuple[int, int, int]) -> Image.Image:
    image = PAPER.copy()
    ImageDraw.Draw(image).rectangle(box, fill)
    return image


def flat(
    image: Image.Image, parts: Sequence[PixelBox] = HALVES, within: PixelBox | None = None
) -> list[bool]:
    async def scenario() -> list[bool]:
        whole = LazyImage(encoded(image), ImageDecoder(ImageLimits(1_000_000), 2), "a")
        await whole.open()
        return await flat_parts(whole if within is None else ImageView.of(whole, within), parts)

    return asyncio.run(scenario())


def test_a_part_without_an_edge_is_flat_in_any_colour() -> None:
    assert flat(PAPER) == [True, True]
    assert flat(drawn((150, 40, 153, 43), (0, 0, 0))) == [True, False]
    assert flat(drawn((150, 40, 150, 40), (250, 248, 237))) == [True, False]  # one channel by 9
    assert flat(drawn((150, 40, 150, 40), (250, 248, 238))) == [True, True]


@pytest.mark.parametrize("height", [1, 7, 16, 17])
def test_an_image_of_any_height_is_read(height: int) -> None:
    image = PAPER.resize((200, height))
    image.putpixel((150, height - 1), (0, 0, 0))
    assert flat(image, ((0, 0, 100, height), (100, 0, 200, height))) == [True, False]


@pytest.mark.parametrize("x", [144, 159, 160, 161])
def test_an_edge_between_cells_is_seen(x: int) -> None:
    assert flat(drawn((x, 0, 200, 100), (0, 0, 0))) == [True, False]


def test_shading_is_flat_and_noise_is_not() -> None:
    shaded = np.zeros((100, 200, 3), dtype=np.uint8)
    shaded += (np.arange(200) // 4).astype(np.uint8)[None, :, None]  # 50 levels over the image
    assert flat(Image.fromarray(shaded)) == [True, True]
    noise = np.random.default_rng(0).integers(0, 30, (100, 200, 3), dtype=np.uint8)
    assert flat(Image.fromarray(noise)) == [False, False]


def test_the_noise_of_a_sensor_is_flat_and_a_faint_thing_in_it_is_not() -> None:
    levels = np.random.default_rng(0).normal(128, 1.5, (100, 200, 3))
    assert flat(Image.fromarray(levels.astype(np.uint8))) == [True, True]
    levels[40:48, 150:158] += 10
    assert np.ptp(levels) < 24  # noise may differ as much; means of blocks may not
    assert flat(Image.fromarray(levels.astype(np.uint8))) == [True, False]
    levels[:, 128:] += np.random.default_rng(1).normal(0, 9, (100, 72, 3))
    assert flat(Image.fromarray(levels.astype(np.uint8))) == [True, False]


def test_parts_of_a_view_are_parts_of_its_image() -> None:
    dotted = drawn((150, 40, 153, 43), (0, 0, 0))
    assert flat(dotted, ((0, 0, 20, 100), (40, 0, 100, 100)), within=HALVES[1]) == [True, False]


class Undecodable(LazyImage):
    """An image whose pixels must not be read."""

    def strips(self, num_rows: int) -> AsyncGenerator[Pixels, None]:
        raise AssertionError(num_rows)


def test_a_large_image_is_read_in_strips_and_once() -> None:
    image = Image.new("RGB", (4000, 1000))  # 12 MB of pixels
    ImageDraw.Draw(image).rectangle((3000, 900, 3005, 905), (255, 255, 255))
    data = encoded(image, compress_level=1)
    parts = ((0, 0, 4000, 800), (0, 800, 4000, 1000), (2000, 800, 2900, 1000))

    async def scenario() -> None:
        decoder = ImageDecoder(ImageLimits(10_000_000), 2)
        for kind in (LazyImage, Undecodable):
            lazy = kind(data, decoder, "a")
            await lazy.open()
            assert await flat_parts(lazy, parts) == [True, False, True]

    asyncio.run(scenario())
