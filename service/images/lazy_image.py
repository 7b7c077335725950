"""The image of one request: the header is checked at once, pixels are decoded only if a runner needs them.

Decoded images are large and slow to make: their number is bounded, and no client can take all places.
"""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from blake3 import blake3
from PIL import Image

from runners.artifacts.manifest import Manifest
from runners.transport.pixels import Pixels
from service.admission.fair_share import ClientSlots
from service.images.decoding import ImageHeader, ImageLimits, decode_image, read_header, resize

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class ImageDecoder:
    """The limits on an image, and the slots for decoded images, of which one client gets all but one."""

    def __init__(self, limits: ImageLimits, num_slots: int) -> None:
        self.limits = limits
        self.slots = ClientSlots(num_slots, num_slots - 1)


class LazyImage:
    """An image file whose pixels are decoded once for all models of a request that need them at the same time."""

    def __init__(self, data: bytes, decoder: ImageDecoder, client: str) -> None:
        self._data = data
        self._decoder = decoder
        self._client = client
        self._num_users = 0

    async def open(self) -> None:
        """Read the header and hash the file; raise `UnsupportedImage` or `ImageTooLarge`."""
        start_s = time.monotonic()
        self.header, self._digest = await in_thread(_read, self._data, self._decoder.limits)
        self.open_s = time.monotonic() - start_s

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: the hash of everything that determines the features of this image."""
        width, height = manifest.image_size_wh
        return blake3(self._digest + f"{manifest.build_key} {width}x{height}".encode()).hexdigest()

    async def pixels(self, manifest: Manifest) -> Pixels:
        """Return the pixels (H, W, 3) at a model's input size; raise `UnsupportedImage`."""
        if self._num_users == 0:
            self._decoded: asyncio.Future[Image.Image] = asyncio.get_running_loop().create_future()
            self._decoding = asyncio.create_task(self._decode(self._decoded))
        self._num_users += 1
        try:
            rgb = await asyncio.shield(self._decoded)
            return await in_thread(resize, rgb, manifest.image_size_wh, manifest.resample)
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._decoding.cancel()
                # The pixels go, and a cycle: the task's exception refers to `self`, and so to the file.
                del self._decoded, self._decoding

    async def _decode(self, decoded: asyncio.Future[Image.Image]) -> None:
        """Decode, and hold the slot until cancelled: a thread cannot be stopped, its request need not wait for it."""
        async with self._decoder.slots.slot(self._client):
            try:
                decoded.set_result(await in_thread(decode_image, self._data, self._decoder.limits))
            except Exception as error:
                decoded.set_exception(error)
            await asyncio.Event().wait()


async def in_thread(function: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
    """Run `function` in a thread; if cancelled, wait for it to return first.

    A thread cannot be stopped: a cancelled request counts as in flight until its thread is free.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


def _read(data: bytes, limits: ImageLimits) -> tuple[ImageHeader, bytes]:
    return read_header(data, limits), blake3(data).digest()
