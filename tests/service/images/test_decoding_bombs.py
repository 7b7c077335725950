"""Small files that would take long to decode, or much memory: refused by their header."""

import asyncio
import gc
import io
import time
import weakref

import pytest
from PIL import Image

from service.errors import ImageTooLarge
from service.images.decoding import ImageDecoder, ImageLimits, LazyImage, decode_image, read_header
from tests.support.attack_images import animated_webp, repeated_scans
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run
from tests.support.fake_service import encoded, served
from tests.support.image_files import LIMITS, png


def test_jpeg_of_many_scans_is_refused_by_its_header() -> None:
    bomb = repeated_scans((1000, 1000), 1500)
    start_s = time.monotonic()
    with pytest.raises(ImageTooLarge, match="has 1510 scans of 1000 x 1000 pixels; the maximum is 16"):
        read_header(bomb, LIMITS)
    assert time.monotonic() - start_s < 0.5  # 3 s to decode


@pytest.mark.parametrize("size_wh", [(1000, 1000), (64, 32)])
def test_progressive_jpeg_is_decoded(size_wh: tuple[int, int]) -> None:
    assert decode_image(repeated_scans(size_wh, 0), LIMITS).size == size_wh


def test_small_jpeg_may_have_more_scans() -> None:
    assert decode_image(repeated_scans((100, 100), 500), LIMITS).size == (100, 100)


def test_start_of_scan_in_metadata_and_behind_the_end_does_not_count() -> None:
    file = io.BytesIO()
    marks = b"\xff\xda" * 10_000
    Image.new("RGB", (1000, 1000)).save(file, "JPEG", progressive=True, exif=b"Exif\0\0" + marks)
    assert decode_image(file.getvalue() + marks, LIMITS).size == (1000, 1000)


@pytest.mark.parametrize("size_wh", [(2**24, 2), (20_001, 1), (1, 20_001)])
def test_animation_with_a_long_side_is_refused(size_wh: tuple[int, int]) -> None:
    start_s = time.monotonic()
    with pytest.raises(ImageTooLarge):
        read_header(animated_webp(size_wh), ImageLimits(50_000_000))
    assert time.monotonic() - start_s < 0.5


def test_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode_image(animation, LIMITS).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size_wh", [(50_000_000, 1), (20_001, 10)])
def test_png_with_a_long_side_is_refused(size_wh: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match="the maximum of a side is 20000"):
        read_header(png(*size_wh, 8, 2, b"\0" * 100), ImageLimits(50_000_000))


def test_one_client_never_takes_all_places_and_no_more_images_are_decoded_than_there_are_places() -> None:
    async def decode(decoder: ImageDecoder, client: str) -> None:
        async with decoder.slots.slot(client):
            running.append(client)
            await end.wait()

    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 3)
        tasks = [asyncio.create_task(decode(decoder, client)) for client in ("bombs",) * 6 + ("polite",) * 2]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sorted(running) == ["bombs", "bombs", "polite"]
        end.set()
        await asyncio.gather(*tasks)

    running, end = list[str](), asyncio.Event()
    run(scenario())
    assert len(running) == 8


def test_an_abandoned_decoding_keeps_its_place_and_lets_its_request_go() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(ImageLimits(50_000_000), 2)
        image = LazyImage(repeated_scans((1000, 1000), 500), decoder, "impatient")  # about a second
        await image.open()
        start_s = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await image.pixels(served(FLORENCE).manifest)
        gone_s = time.monotonic() - start_s
        async with decoder.slots.slot("impatient"):
            freed_s = time.monotonic() - start_s
        assert gone_s < freed_s / 2

    run(scenario())


def test_a_decoded_image_is_freed_with_its_last_reference() -> None:
    async def scenario() -> None:
        image = LazyImage(encoded(Image.new("RGB", (64, 32))), ImageDecoder(LIMITS, 2), "test")
        await image.open()
        await image.pixels(served(FLORENCE).manifest)
        await asyncio.sleep(0.05)  # the cancelled task ends
        freed = weakref.ref(image)
        del image
        assert freed() is None

    gc.collect()
    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()
