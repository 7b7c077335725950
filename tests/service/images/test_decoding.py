"""Slots of the decoder, and the errors of an image as a client receives them."""

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import ParamSpec, TypeVar

import numpy as np
import psutil
import pytest
from PIL import Image

from imaging.files import ImageLimits, PixelBox, decode_image, read_header, resize
from service.admission.threads import FairThreads, current_client
from service.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError, UnsupportedImage
from service.images import decoding
from service.images.decoding import (
    ImageDecoder,
    ImageView,
    LazyImage,
    decoded_in_process,
)
from tests.support.attack_images import repeated_scans
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.fake_service import INPUT_SIZE_WH, encoded, run, served, until
from tests.support.image_files import LIMITS, colour_steps
from tests.support.processes import image_decoders
from tests.support.waiting import wait_until
from wire.artifacts.manifest import Manifest
from wire.pixels import Pixels

P = ParamSpec("P")
T = TypeVar("T")
DAMAGED = "the PNG image is damaged or truncated and cannot be decoded"


async def model_pixels(
    image: LazyImage, manifest: Manifest, crop: PixelBox | None = None
) -> Pixels:
    return await image.resized(manifest.image_size_wh, manifest.resample, crop)


@pytest.mark.parametrize("is_heavy", [False, True])
async def test_client_leaves_a_place_to_decode(is_heavy: bool) -> None:
    """Heavy images together never take all places, either."""

    async def decode(decoder: ImageDecoder, client: str, is_heavy: bool) -> None:
        async with decoder.slot(client, is_heavy):
            running.append(client)
            await end.wait()

    running = list[str]()
    end = asyncio.Event()
    decoder = ImageDecoder(LIMITS, 3)
    heavy = ("bombs",) * 6 + ("more bombs", "other bombs") * is_heavy
    tasks = [asyncio.create_task(decode(decoder, client, is_heavy)) for client in heavy]
    tasks += [asyncio.create_task(decode(decoder, "polite", False)) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert sorted(running) == ["bombs", "more bombs" if is_heavy else "bombs", "polite"]
    end.set()
    await asyncio.gather(*tasks)
    assert len(running) == 8 + 2 * is_heavy


async def test_client_leaves_a_thread_for_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only large files are read in threads."""

    async def open_as(client: str, image: LazyImage, timeout_s: float = 60) -> None:
        current_client.set(client)
        await image.open(time.monotonic() + timeout_s)

    threads = FairThreads("headers", 2)
    monkeypatch.setattr(decoding, "DECODING", threads)
    decoder = ImageDecoder(LIMITS, 2)
    data = encoded(Image.effect_noise((300, 300), 50))
    waiting, polite = (LazyImage(data, decoder, client) for client in ("flood", "polite"))
    end = threading.Event()
    current_client.set("flood")
    flood = asyncio.create_task(threads.run(end.wait))
    try:
        await asyncio.sleep(0)
        with pytest.raises(
            DeadlineExceeded, match="the header of the image was not read before the deadline"
        ):
            await open_as("flood", waiting, 0.05)
        await open_as("polite", polite)
        await open_as("flood", LazyImage(encoded(colour_steps()), decoder, "flood"))
    finally:
        end.set()
        await flood
    await open_as("flood", waiting)
    assert waiting.header == polite.header


async def test_headers_do_not_wait_for_pixels() -> None:
    decoder = ImageDecoder(LIMITS, 2)
    async with decoder.slot("a", is_heavy=True), decoder.slot("b", is_heavy=False):
        await LazyImage(encoded(colour_steps()), decoder, "a").open(time.monotonic() + 60)


def test_decoded_image_is_freed() -> None:
    async def scenario() -> None:
        image = LazyImage(encoded(Image.new("RGB", (64, 32))), ImageDecoder(LIMITS, 2), "test")
        await image.open()
        await model_pixels(image, served(FLORENCE).manifest)
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


async def test_small_image_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class CountedThreads(FairThreads):
        num_calls = 0

        async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
            self.num_calls += 1
            return await super().run(function, *args, **kwargs)

    threads = CountedThreads("test", 1)
    monkeypatch.setattr(decoding, "DECODING", threads)
    await pixels_of(encoded(colour_steps()), LIMITS)
    assert threads.num_calls == 1


async def pixels_of(data: bytes, limits: ImageLimits) -> None:
    image = LazyImage(data, ImageDecoder(limits, 2), "test")
    await image.open()
    await model_pixels(image, served(FLORENCE).manifest)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (encoded(colour_steps())[:-40], "unsupported_image", DAMAGED),  # pixels are missing
        (
            encoded(Image.new("1", (1001, 1000))),
            "image_too_large",
            "the image of 1001 x 1000 pixels has 1001000 pixels; the maximum is 1000000",
        ),
    ],
    ids=["pixels", "size"],
)
def test_refused_images(data: bytes, code: str, message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        run(pixels_of(data, LIMITS))
    error = caught.value
    assert (error.message, error.code, error.param) == (message, code, "image")


def test_damaged_heavy_image() -> None:
    """A process decodes it."""
    noise = encoded(Image.effect_noise((4000, 3100), 50).convert("1"))
    with pytest.raises(UnsupportedImage) as caught:
        run(pixels_of(noise[: len(noise) // 2], ImageLimits(50_000_000)))
    assert (caught.value.message, caught.value.param) == (DAMAGED, "image")


LARGE_LIMITS = ImageLimits(2_000_000_000)
SLOW = repeated_scans((5000, 5000), 900)  # 15 s
# 0.3 s of a low priority
HEAVY = repeated_scans((5000, 5000), 10)
QUICK = encoded(colour_steps(), "PNG")


async def decoder() -> psutil.Process:
    """Return the decoder's process once it runs."""
    await until(image_decoders)
    return image_decoders()[0]


async def opened(data: bytes, images: ImageDecoder, client: str = "test") -> LazyImage:
    image = LazyImage(data, images, client)
    await image.open()
    return image


async def others_ended() -> None:
    """Wait for the tasks that kill decoders: the event loop would be closed before the pipes of
    these are.
    """
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
    while image_decoders():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("size_wh", "image_format", "options", "is_heavy"),
    [
        ((4000, 3000), "JPEG", {}, False),
        ((2500, 2000), "JPEG", {"progressive": True}, False),
        ((4000, 3000), "PNG", {"compress_level": 1}, False),
        ((6000, 5000), "JPEG", {"progressive": True}, True),
        ((5000, 4000), "PNG", {"compress_level": 1}, True),
        ((5000, 4000), "WEBP", {"lossless": True, "quality": 0, "method": 0}, True),
    ],
)
def test_heavy_images(
    size_wh: tuple[int, int], image_format: str, options: dict[str, int], is_heavy: bool
) -> None:
    data = encoded(Image.new("RGB", size_wh), image_format, **options)
    assert read_header(data, LARGE_LIMITS).is_heavy is is_heavy


async def test_cancelled_caller_leaves_no_pixels() -> None:
    async with decoded_in_process(QUICK, LARGE_LIMITS) as image:
        first = asyncio.ensure_future(image.resized((500, 500), Image.Resampling.BICUBIC))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        pixels = await image.resized((7, 9), Image.Resampling.BICUBIC)
    expected = decode_image(QUICK, LARGE_LIMITS).resize((7, 9), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels, np.asarray(expected))


async def read_until_suspended(image: LazyImage) -> None:
    """Read pixels with a deadline that passes once the decoder is suspended, and cannot end."""
    async with asyncio.timeout(60) as limit:
        reading = asyncio.ensure_future(model_pixels(image, served(FLORENCE).manifest))
        process = await decoder()
        await until(lambda: sum(process.cpu_times()[:2]) > 0.5)  # its start takes less
        process.suspend()
        limit.reschedule(asyncio.get_running_loop().time())
        await reading


async def test_process_ends_with_its_deadline() -> None:
    images = ImageDecoder(LARGE_LIMITS, 2)
    image = await opened(SLOW, images)
    with pytest.raises(TimeoutError):
        await read_until_suspended(image)
    async with asyncio.timeout(60), images.slot("test", is_heavy=True):
        assert not image_decoders()


async def test_killed_process_fails_its_request() -> None:
    images = ImageDecoder(LARGE_LIMITS, 2)
    image = await opened(SLOW, images)
    pixels = [
        asyncio.ensure_future(model_pixels(image, served(entry).manifest))
        for entry in (FLORENCE, PALIGEMMA)
    ]
    (await decoder()).kill()
    for failed in await asyncio.gather(*pixels, return_exceptions=True):
        assert isinstance(failed, NotReady)
        assert "ended with status -9" in failed.message
    async with images.slot("test", is_heavy=True), decoded_in_process(QUICK, LARGE_LIMITS) as other:
        assert (await other.resized((7, 9), 3)).shape == (9, 7, 3)


async def test_requests_share_a_decoding() -> None:
    images = ImageDecoder(LARGE_LIMITS, 4)
    manifest = served(FLORENCE).manifest
    first, second = [
        asyncio.ensure_future(model_pixels(await opened(HEAVY, images), manifest)) for _ in range(2)
    ]
    shared = await decoder()
    first.cancel()
    other = await model_pixels(await opened(QUICK, images), manifest)
    assert set(image_decoders()) <= {shared}
    pixels = await second
    assert pixels.shape == other.shape
    assert not np.array_equal(pixels, other)
    with pytest.raises(asyncio.CancelledError):
        await first
    await others_ended()


async def test_retained_process_serves_parts() -> None:
    images = ImageDecoder(LARGE_LIMITS, 2)
    image = await opened(QUICK, images)
    image.header = replace(image.header, is_heavy=True)
    held_bytes: list[int] = []
    image.hold = held_bytes.append
    manifest = served(FLORENCE).manifest
    first = await model_pixels(image, manifest, (0, 0, 32, 32))
    started = image_decoders()
    async with images.slot("test", is_heavy=True):
        second = await model_pixels(image, manifest, (32, 0, 64, 32))
    assert not np.array_equal(first, second)
    assert (image_decoders(), held_bytes) == (started, [4 * 64 * 32])
    await image.aclose()
    assert not image_decoders()


async def test_clients_do_not_share_a_decoding() -> None:
    """Each waits for its own slots only."""

    images = ImageDecoder(LARGE_LIMITS, 4)
    manifest = served(FLORENCE).manifest
    pending = [
        asyncio.ensure_future(model_pixels(await opened(SLOW, images, client), manifest))
        for client in ("a", "b")
    ]
    await until(lambda: len(image_decoders()) == len(pending))
    for reading in pending:
        reading.cancel()
    await others_ended()


def test_a_decoder_ends_with_its_parent() -> None:
    async def scenario() -> None:
        async with decoded_in_process(SLOW, LARGE_LIMITS):
            await asyncio.sleep(60)

    if (parent := os.fork()) == 0:
        with suppress(BaseException):
            # it has not the threads of this process
            vars(decoding).update(DECODING=FairThreads("fork", 1))
            asyncio.run(scenario())
        os._exit(1)
    try:
        # set behind the guard
        wait_until(lambda: [process for process in image_decoders(parent) if process.nice() >= 10])
        started = image_decoders(parent)
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    wait_until(lambda: not any(map(is_running, started)))


def is_running(process: psutil.Process) -> bool:
    """Return False also for a zombie: an orphan may have no parent that waits for it."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


BOX = (100, 50, 300, 250)
NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8), "RGB"
)
MANIFEST = served(FLORENCE).manifest


async def opened_views(hold: Callable[[int], None] | None = None) -> LazyImage:
    image = LazyImage(encoded(NOISE), ImageDecoder(ImageLimits(1_000_000), 2), "a")
    await image.open()
    image.hold = hold
    return image


async def test_view_has_full_resolution() -> None:
    image = await opened_views()
    view = ImageView.of(image, BOX)
    assert view.header.size_wh == (200, 200)
    expected = resize(NOISE.crop(BOX), INPUT_SIZE_WH, MANIFEST.resample)
    assert np.array_equal(await model_pixels(view, MANIFEST), np.asarray(expected))
    inner = ImageView.of(view, (10, 10, 200, 199))
    outer = ImageView.of(image, (110, 60, 300, 249))
    assert inner.key(MANIFEST) == outer.key(MANIFEST)
    assert len({part.key(MANIFEST) for part in (image, view, inner)}) == 3


@pytest.mark.parametrize("is_room", [True, False])
async def test_image_is_decoded_once_for_parts(is_room: bool) -> None:
    held_bytes: list[int] = []

    def hold(num_bytes: int) -> None:
        held_bytes.append(num_bytes)
        if not is_room:
            raise Overloaded("no memory")

    image = await opened_views(hold)
    first = await model_pixels(image, MANIFEST)
    assert (image.decoded is not None) == is_room
    view = await model_pixels(ImageView.of(image, BOX), MANIFEST)
    assert first.shape == view.shape
    assert held_bytes == [400 * 300 * 4] * (1 if is_room else 2)
    await image.resized((4, 4), Image.Resampling.BOX)
    assert held_bytes == [400 * 300 * 4] * (1 if is_room else 3)
