"""The image of one request: the header is checked at once, pixels are decoded only if a runner needs them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from blake3 import blake3
from PIL import Image

from runners.artifacts.manifest import Manifest
from runners.transport.pixels import Pixels
from service.images.decoding import ImageHeader, decode_image, read_header, resize

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class LazyImage:
    """An image file whose pixels are decoded at most once, for all models of a request."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self._data = data
        self._max_pixels = max_pixels
        self._decoding: asyncio.Task[Image.Image] | None = None

    async def open(self) -> None:
        """Read the header and hash the file; raise `UnsupportedImage` or `ImageTooLarge`."""
        start_s = time.monotonic()
        self.header, self._digest = await in_thread(_read, self._data, self._max_pixels)
        self.open_s = time.monotonic() - start_s

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: the hash of everything that determines the features of this image."""
        width, height = manifest.image_size_wh
        return blake3(self._digest + f"{manifest.build_key} {width}x{height}".encode()).hexdigest()

    async def pixels(self, manifest: Manifest) -> Pixels:
        """Return the pixels (H, W, 3) at a model's input size; raise `UnsupportedImage`."""
        if self._decoding is None:
            self._decoding = asyncio.create_task(in_thread(decode_image, self._data, self._max_pixels))
        rgb = await asyncio.shield(self._decoding)
        return await in_thread(resize, rgb, manifest.image_size_wh, manifest.resample)

    async def close(self) -> None:
        """Wait for the decoding thread."""
        if self._decoding is not None:
            await asyncio.wait([self._decoding])


@asynccontextmanager
async def opened(data: bytes, max_pixels: int) -> AsyncIterator[LazyImage]:
    """Yield the opened image; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = LazyImage(data, max_pixels)
    await image.open()
    try:
        yield image
    finally:
        await image.close()


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


def _read(data: bytes, max_pixels: int) -> tuple[ImageHeader, bytes]:
    return read_header(data, max_pixels), blake3(data).digest()
