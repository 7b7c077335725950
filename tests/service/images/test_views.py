"""A part of an image is asked about as a separate image."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from imaging.files import ImageLimits, resize
from service.errors import Overloaded
from service.images.decoding import ImageDecoder, ImageView, LazyImage
from tests.support.fake_service import INPUT_SIZE_WH, encoded, served_models

BOX = (100, 50, 300, 250)
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8), "RGB"
)
MANIFEST = next(iter(served_models())).manifest


async def opened(hold: Callable[[int], None] | None = None) -> LazyImage:
    image = LazyImage(encoded(NOISE), ImageDecoder(ImageLimits(1_000_000), 2), "a")
    await image.open()
    image.hold = hold
    return image


def test_a_view_has_the_pixels_of_its_part_at_full_resolution() -> None:
    async def scenario() -> None:
        view = ImageView.of(await opened(), BOX)
        assert view.header.size_wh == (200, 200)
        expected = resize(NOISE.crop(BOX), INPUT_SIZE_WH, MANIFEST.resample)
        assert np.array_equal(await view.pixels(MANIFEST), np.asarray(expected))

    asyncio.run(scenario())


def test_the_key_of_a_view_is_that_of_the_file_and_the_part() -> None:
    async def scenario() -> None:
        image = await opened()
        keys = {image.key(MANIFEST), *(ImageView.of(image, box).key(MANIFEST) for box in [BOX] * 2)}
        assert len(keys) == 2
        assert ImageView.of(image, (100, 50, 300, 249)).key(MANIFEST) not in keys

    asyncio.run(scenario())


@pytest.mark.parametrize("is_room", [True, False])
def test_an_image_is_decoded_once_for_all_parts_if_there_is_memory(is_room: bool) -> None:
    held: list[int] = []

    def hold(num_bytes: int) -> None:
        held.append(num_bytes)
        if not is_room:
            raise Overloaded("no memory")

    async def scenario() -> None:
        image = await opened(hold)
        first = await image.pixels(MANIFEST)
        assert (image.decoded is not None) == is_room
        view = await ImageView.of(image, BOX).pixels(MANIFEST)
        assert first.shape == view.shape
        assert held == [400 * 300 * 4] * (1 if is_room else 2)

    asyncio.run(scenario())
