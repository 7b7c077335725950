"""Slots of the decoder, and the errors of an image as a client receives them."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import pytest
from PIL import Image

from imaging.files import ImageLimits
from service.errors import DeadlineExceeded, ImageTooLarge, ServiceError, UnsupportedImage
from service.images.decoding import ImageDecoder, LazyImage
from tests.support.attack_images import repeated_scans
from tests.support.catalog import FLORENCE
from tests.support.core_calls import run, until
from tests.support.fake_service import encoded, served
from tests.support.image_files import LIMITS, colour_steps

P = ParamSpec("P")
T = TypeVar("T")
FORMATS = "the image cannot be read; it must be a file in one of the formats JPEG, PNG, WEBP"
DAMAGED = "the PNG image is damaged or truncated and cannot be decoded"


@pytest.mark.parametrize("is_heavy", [False, True])
def test_one_client_never_takes_all_places_and_no_more_images_are_decoded_than_there_are_places(
    is_heavy: bool,
) -> None:
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

    running = list[str]()
    end = asyncio.Event()
    run(scenario())
    assert len(running) == 8 + is_heavy


def test_one_client_never_takes_all_places_to_read_headers_and_its_deadline_ends_the_wait() -> None:
    """Only large files are read in places."""

    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 2)
        data = encoded(Image.effect_noise((300, 300), 50))
        waiting, polite = (LazyImage(data, decoder, client) for client in ("flood", "polite"))
        async with decoder.header_slots.slot("flood"):
            with pytest.raises(
                DeadlineExceeded, match="the header of the image was not read before the deadline"
            ):
                await waiting.open(time.monotonic() + 0.05)
            await polite.open(time.monotonic() + 60)
            await LazyImage(encoded(colour_steps()), decoder, "flood").open(time.monotonic() + 60)
        await waiting.open(time.monotonic() + 60)
        assert waiting.header == polite.header

    run(scenario())


def test_headers_do_not_wait_for_pixels() -> None:
    async def scenario() -> None:
        decoder = ImageDecoder(LIMITS, 2)
        async with decoder.slot("a", is_heavy=True), decoder.slot("b", is_heavy=False):
            await LazyImage(encoded(colour_steps()), decoder, "a").open(time.monotonic() + 60)

    run(scenario())


def test_a_decoded_image_is_freed_with_its_last_reference() -> None:
    async def scenario() -> None:
        image = LazyImage(encoded(Image.new("RGB", (64, 32))), ImageDecoder(LIMITS, 2), "test")
        await image.open()
        await image.pixels(served(FLORENCE).manifest)
        await until(lambda: len(asyncio.all_tasks()) == 1)  # the cancelled task ends
        freed = weakref.ref(image)
        del image
        assert freed() is None

    gc.collect()
    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()


def test_a_small_image_takes_one_thread_once() -> None:
    class CountedThreads(ThreadPoolExecutor):
        num_calls = 0

        def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
            self.num_calls += 1
            return super().submit(work, *args, **kwargs)

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        await pixels_of(encoded(colour_steps()), LIMITS)

    threads = CountedThreads(1)
    run(scenario())
    assert threads.num_calls == 1


async def pixels_of(data: bytes, limits: ImageLimits) -> None:
    image = LazyImage(data, ImageDecoder(limits, 2), "test")
    await image.open()
    await image.pixels(served(FLORENCE).manifest)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"GIF89a", UnsupportedImage, FORMATS),
        (b"\x89PNG\r\n\x1a\n", UnsupportedImage, DAMAGED),
        (encoded(colour_steps())[:-40], UnsupportedImage, DAMAGED),  # pixels are missing
        (
            encoded(Image.new("1", (1001, 1000))),
            ImageTooLarge,
            "the image has 1001 x 1000 = 1001000 pixels; the maximum is 1000000",
        ),
        (
            repeated_scans((1000, 1000), 900),
            ImageTooLarge,
            "the JPEG has 910 scans of 1000 x 1000 pixels; the maximum is 16",
        ),
    ],
    ids=["format", "header", "pixels", "size", "scans"],
)
def test_an_image_that_is_not_decoded_is_refused_by_its_field(
    data: bytes, kind: type[ServiceError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        run(pixels_of(data, LIMITS))
    assert (caught.value.message, caught.value.param) == (message, "image")


def test_a_heavy_image_that_is_damaged_is_refused_by_its_field() -> None:
    """A process decodes it."""
    noise = encoded(Image.effect_noise((4000, 3100), 50).convert("1"))
    with pytest.raises(UnsupportedImage) as caught:
        run(pixels_of(noise[: len(noise) // 2], ImageLimits(50_000_000)))
    assert (caught.value.message, caught.value.param) == (DAMAGED, "image")
