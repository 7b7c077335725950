"""Small files that would take long to decode, or much memory: refused by their header."""

import asyncio
import gc
import time
import weakref

import pytest
from PIL import Image

from service.errors import DeadlineExceeded, ImageTooLarge
from service.images.decoding import ImageDecoder, LazyImage
from service.images.files import ImageLimits, decode_image, read_header
from tests.support.attack_images import animated_webp, repeated_scans
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run
from tests.support.fake_service import encoded, served
from tests.support.image_files import LIMITS, chunk, colour_steps, png

PNG_END = chunk(b"IEND", b"")


def test_jpeg_of_many_scans_is_refused_by_its_header() -> None:
    bomb = repeated_scans((1000, 1000), 900)
    start_s = time.monotonic()
    with pytest.raises(ImageTooLarge, match="has 910 scans of 1000 x 1000 pixels; the maximum is 16"):
        read_header(bomb, LIMITS)
    assert time.monotonic() - start_s < 0.5  # 2 s to decode


@pytest.mark.parametrize("size_wh", [(1000, 1000), (64, 32)])
def test_progressive_jpeg_is_decoded(size_wh: tuple[int, int]) -> None:
    assert decode_image(repeated_scans(size_wh, 0), LIMITS).size == size_wh


def test_small_jpeg_may_have_more_scans() -> None:
    assert decode_image(repeated_scans((100, 100), 500), LIMITS).size == (100, 100)


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


@pytest.mark.parametrize(
    "behind",
    [b"", chunk(b"eXIf", b"II*\0\x08" + bytes(9)), chunk(b"tEXt", b"Raw profile type exif\0")],
    ids=["nothing", "eXIf", "text"],
)
def test_no_pixel_of_a_png_is_decoded_for_an_orientation_behind_the_pixels(behind: bytes) -> None:
    width, height = 7000, 7000
    file = png(width, height, 8, 2, bytes((1 + 3 * width) * height)).removesuffix(PNG_END) + behind + PNG_END
    start_s = time.process_time()
    assert read_header(file, ImageLimits(50_000_000)).size_wh == (width, height)
    assert time.process_time() - start_s < 0.1  # half a second to decode


@pytest.mark.parametrize("is_heavy", [False, True])
def test_one_client_never_takes_all_places_and_no_more_images_are_decoded_than_there_are_places(is_heavy: bool) -> None:
    """Heavy images together never take all places, either."""

    async def decode(decoder: ImageDecoder, client: str, is_heavy: bool) -> None:
        async with decoder.slot(client, is_heavy):
            running.append(client)
            await end.wait()

    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 3)
        heavy = ("bombs",) * 6 + ("more bombs",) * is_heavy
        tasks = [asyncio.create_task(decode(decoder, client, is_heavy)) for client in heavy]
        tasks += [asyncio.create_task(decode(decoder, "polite", False)) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(running) == ["bombs", "more bombs" if is_heavy else "bombs", "polite"]
        end.set()
        await asyncio.gather(*tasks)

    running, end = list[str](), asyncio.Event()
    run(scenario())
    assert len(running) == 8 + is_heavy


def test_one_client_never_takes_all_places_to_read_headers_and_its_deadline_ends_the_wait() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 2)
        waiting, polite = (LazyImage(encoded(colour_steps()), decoder, client) for client in ("flood", "polite"))
        async with decoder.header_slot("flood"):
            with pytest.raises(DeadlineExceeded, match="the header of the image was not read before the deadline"):
                await waiting.open(time.monotonic() + 0.05)
            await polite.open(time.monotonic() + 5)
        await waiting.open(time.monotonic() + 5)
        assert waiting.header == polite.header

    run(scenario())


def test_headers_do_not_wait_for_pixels() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 2)
        async with decoder.slot("a", is_heavy=True), decoder.slot("b", is_heavy=False):
            await LazyImage(encoded(colour_steps()), decoder, "a").open(time.monotonic() + 5)

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
