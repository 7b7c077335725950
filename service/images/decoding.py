"""The image of a request: its header and hash, and its pixels, decoded and resized only if a runner needs them.

Decoded images are large and slow to make: their number is bounded, and no client takes all places. Ordinary images are
decoded in threads, heavy ones in processes that end with their requests and leave one place free.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from blake3 import blake3
from PIL import Image

from runners.artifacts.manifest import VISION_ENCODER_FILE, Manifest
from runners.transport.pixels import Pixels
from service.admission.load import ClientSlots
from service.errors import NotReady
from service.images.decoding_process import DecoderEnded, DecodingProcess, decoded_in_process
from service.images.files import ImageLimits, decode_image, read_header, resize

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class ImageDecoder:
    """The limits on an image, and the slots for decoded images, of which one client gets all but one.

    Heavy images together get all but one, too, so that those of others never take the place of an ordinary one.
    """

    def __init__(self, limits: ImageLimits, num_slots: int) -> None:
        self.limits = limits
        self._slots = ClientSlots(num_slots, num_slots - 1)
        self._heavy_slots = ClientSlots(num_slots - 1, max(1, num_slots - 2))

    @asynccontextmanager
    async def slot(self, client: str, is_heavy: bool) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for as long as the context lasts."""
        async with self._heavy_slots.slot(client) if is_heavy else nullcontext(), self._slots.slot(client):
            yield


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image decoded in this process."""

    rgb: Image.Image

    async def resized(self, size_wh: tuple[int, int], resample: int) -> Pixels:
        """Return the pixels (H, W, 3) at exactly `size_wh`."""
        return await in_thread(_resized, self.rgb, size_wh, resample)


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
        self.header = await in_thread(read_header, self._data, self._decoder.limits)
        self.open_s = time.monotonic() - start_s

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: the hash of everything that determines the features of this image.

        An adapter without a vision encoder has the key of its base, whose features it uses.
        """
        width, height = manifest.image_size_wh
        build_key = manifest.base_build_key if VISION_ENCODER_FILE not in manifest.files else None
        return blake3(self.header.digest + f"{build_key or manifest.build_key} {width}x{height}".encode()).hexdigest()

    async def pixels(self, manifest: Manifest) -> Pixels:
        """Return the pixels (H, W, 3) at a model's input size; raise `UnsupportedImage` or `NotReady`."""
        if self._num_users == 0:
            self._decoded: asyncio.Future[DecodedImage | DecodingProcess] = asyncio.get_running_loop().create_future()
            self._decoding = asyncio.create_task(self._decode(self._decoded))
        self._num_users += 1
        try:
            decoded = await asyncio.shield(self._decoded)
            return await decoded.resized(manifest.image_size_wh, manifest.resample)
        except DecoderEnded as error:
            raise NotReady(f"{error}; retry the request") from error
        finally:
            self._num_users -= 1
            if self._num_users == 0:
                self._decoding.cancel()
                # The pixels go, and a cycle: the task's exception refers to `self`, and so to the file.
                del self._decoded, self._decoding

    async def _decode(self, decoded: asyncio.Future[DecodedImage | DecodingProcess]) -> None:
        """Decode, and hold slot and decoded image until cancelled, which ends a process at once."""
        data, limits, is_heavy = self._data, self._decoder.limits, self.header.is_heavy
        async with self._decoder.slot(self._client, is_heavy):
            try:
                async with decoded_in_process(data, limits) if is_heavy else _decoded_in_thread(data, limits) as image:
                    decoded.set_result(image)
                    await asyncio.Event().wait()
            except Exception as error:
                decoded.set_exception(error)


@asynccontextmanager
async def _decoded_in_thread(data: bytes, limits: ImageLimits) -> AsyncIterator[DecodedImage]:
    yield DecodedImage(await in_thread(decode_image, data, limits))


def _resized(rgb: Image.Image, size_wh: tuple[int, int], resample: int) -> Pixels:
    return np.asarray(resize(rgb, size_wh, resample), dtype=np.uint8)


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
