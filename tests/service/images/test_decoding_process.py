"""Heavy images are decoded in processes: as in threads, and killed with their last request."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from imaging.errors import UnreadableImage
from imaging.files import ImageLimits, decode_image, read_header
from service.errors import NotReady
from service.images.decoding import ImageDecoder, LazyImage, decoded_in_process
from tests.support.attack_images import repeated_scans
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.core_calls import run, until
from tests.support.fake_service import encoded, served
from tests.support.image_files import colour_steps
from tests.support.processes import image_decoders
from tests.support.waiting import wait_until

LIMITS = ImageLimits(2_000_000_000)
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
def test_images_are_heavy_by_pixels_and_format(
    size_wh: tuple[int, int], image_format: str, options: dict[str, int], is_heavy: bool
) -> None:
    data = encoded(Image.new("RGB", size_wh), image_format, **options)
    assert read_header(data, LIMITS).is_heavy is is_heavy


def test_a_process_gives_the_pixels_of_a_thread() -> None:
    async def scenario() -> None:
        async with decoded_in_process(QUICK, LIMITS) as image:
            sizes = [(30, 50), (7, 9), (30, 50)]
            resized = await asyncio.gather(
                *(image.resized(size, Image.Resampling.BICUBIC) for size in sizes)
            )
        rgb = decode_image(QUICK, LIMITS)
        for size, pixels in zip(sizes, resized, strict=True):
            assert np.array_equal(pixels, np.asarray(rgb.resize(size, Image.Resampling.BICUBIC)))
        assert not image_decoders()

    run(scenario())


def test_a_cancelled_caller_leaves_no_pixels_to_the_next() -> None:
    async def scenario() -> None:
        async with decoded_in_process(QUICK, LIMITS) as image:
            first = asyncio.ensure_future(image.resized((500, 500), Image.Resampling.BICUBIC))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.cancel()
            pixels = await image.resized((7, 9), Image.Resampling.BICUBIC)
        expected = decode_image(QUICK, LIMITS).resize((7, 9), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels, np.asarray(expected))

    run(scenario())


def test_a_damaged_image_is_refused_as_in_a_thread() -> None:
    async def scenario() -> None:
        async with decoded_in_process(damaged, LIMITS):
            pytest.fail("it was decoded")

    damaged = QUICK[: len(QUICK) // 2]
    with pytest.raises(UnreadableImage, match="the PNG image is damaged or truncated"):
        run(scenario())


def test_a_decoder_ends_with_the_deadline_of_its_request_and_frees_its_place() -> None:
    async def scenario() -> None:
        images = ImageDecoder(LIMITS, 2)
        image = await opened(SLOW, images)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await image.pixels(served(FLORENCE).manifest)
        start_s = time.monotonic()
        async with images.slot("test", is_heavy=True):
            assert time.monotonic() - start_s < 8  # SLOW takes longer; the machine is shared
        assert not image_decoders()

    run(scenario())


def test_a_killed_decoder_fails_its_request_alone() -> None:
    async def scenario() -> None:
        images = ImageDecoder(LIMITS, 2)
        image = await opened(SLOW, images)
        pixels = [
            asyncio.ensure_future(image.pixels(served(each).manifest))
            for each in (FLORENCE, PALIGEMMA)
        ]
        (await decoder()).kill()
        for failed in await asyncio.gather(*pixels, return_exceptions=True):
            assert isinstance(failed, NotReady)
            assert "ended with status -9" in failed.message
        async with images.slot("test", is_heavy=True), decoded_in_process(QUICK, LIMITS) as other:
            assert (await other.resized((7, 9), 3)).shape == (9, 7, 3)

    run(scenario())


def test_requests_for_one_file_share_its_decoding_and_each_can_leave_it() -> None:
    async def scenario() -> None:
        images = ImageDecoder(LIMITS, 4)
        manifest = served(FLORENCE).manifest
        first, second = [
            asyncio.ensure_future((await opened(HEAVY, images)).pixels(manifest)) for _ in range(2)
        ]
        shared = await decoder()
        first.cancel()
        other = await (await opened(QUICK, images)).pixels(manifest)
        assert set(image_decoders()) <= {shared}
        pixels = await second
        assert pixels.shape == other.shape
        assert not np.array_equal(pixels, other)
        with pytest.raises(asyncio.CancelledError):
            await first
        await others_ended()

    run(scenario())


def test_a_kept_decoder_serves_later_parts_without_a_slot_and_ends_with_its_image() -> None:
    async def scenario() -> None:
        images = ImageDecoder(LIMITS, 2)
        image = await opened(QUICK, images)
        image.header = replace(image.header, is_heavy=True)
        held: list[int] = []
        image.hold = held.append
        manifest = served(FLORENCE).manifest
        first = await image.pixels(manifest, (0, 0, 32, 32))
        started = image_decoders()
        async with images.slot("test", is_heavy=True):
            second = await image.pixels(manifest, (32, 0, 64, 32))
        assert not np.array_equal(first, second)
        assert (image_decoders(), held) == (started, [4 * 64 * 32])
        await image.aclose()
        assert not image_decoders()

    run(scenario())


def test_clients_do_not_share_a_decoding() -> None:
    """Each waits for its own slots only."""

    async def scenario() -> None:
        images = ImageDecoder(LIMITS, 4)
        manifest = served(FLORENCE).manifest
        pending = [
            asyncio.ensure_future((await opened(SLOW, images, each)).pixels(manifest))
            for each in ("a", "b")
        ]
        await until(lambda: len(image_decoders()) == len(pending))
        for each in pending:
            each.cancel()
        await others_ended()

    run(scenario())


def test_a_decoder_that_is_killed_between_two_models_fails_the_second() -> None:
    async def scenario() -> None:
        async with decoded_in_process(QUICK, LIMITS) as image:
            await image.resized((7, 9), 3)
            image_decoders()[0].kill()
            with pytest.raises(NotReady):
                await image.resized((7, 9), 3)

    run(scenario())


def test_a_decoder_ends_with_its_parent() -> None:
    async def scenario() -> None:
        async with decoded_in_process(SLOW, LIMITS):
            await asyncio.sleep(60)

    if (parent := os.fork()) == 0:
        with suppress(BaseException):
            asyncio.run(scenario())
        os._exit(1)
    try:
        # set behind the guard
        wait_until(lambda: [each for each in image_decoders(parent) if each.nice() >= 10])
        started = image_decoders(parent)
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    wait_until(lambda: not any(is_running(each) for each in started))


def is_running(process: psutil.Process) -> bool:
    """Return False also for a zombie: an orphan may have no parent that waits for it."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
