"""The image of a request: header, hash, and pixels only if a runner needs them.

Decoded images are large and slow to make: their number is bounded, and no client takes all places.
Ordinary images are decoded in threads, heavy ones in processes that end with their requests and
leave one place free. Headers have separate places: they are read fast and do not wait for pixels.
"""

import asyncio
import contextvars
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np
from blake3 import blake3
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image

from imaging.errors import ImageError, OversizedImage
from imaging.files import ImageHeader, ImageLimits, PixelBox, decode_image, read_header, resize
from service.admission.load import ClientSlots
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    NotReady,
    Overloaded,
    UnsupportedImage,
)
from service.images.decoding_process import DecoderEnded, DecodingProcess, decoded_in_process
from service.telemetry.loop_lag import in_threads
from wire.artifacts.manifest import VISION_ENCODER_FILE, Manifest
from wire.pixels import Pixels

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")

# a header is read in less time than a thread takes to start, and in 0.02 s if it is malicious
_SMALL_FILE_BYTES = 64_000
_RGB_BYTES = 4  # a pixel in Pillow
_MAX_BUSY_CELLS = 64  # images; 200 kB for one of 50 megapixels
_NEAREST = int(Image.Resampling.NEAREST)
_Resizing = tuple[tuple[int, int], int]  # size, resampling filter


class ImageDecoder:
    """The limits on an image, decodings in progress, and slots: a client gets all but one.

    Heavy images together get all but one, too, so that those of others never take the place of an
    ordinary one.
    """

    def __init__(self, limits: ImageLimits, num_slots: int) -> None:
        self.limits = limits
        self.header_slots = ClientSlots(num_slots, num_slots - 1)
        self._slots = ClientSlots(num_slots, num_slots - 1)
        self._heavy_slots = ClientSlots(num_slots - 1, max(1, num_slots - 2))
        # keys: client and hash of the file
        self._decodings: dict[tuple[str, bytes], SharedDecoding] = {}
        # key: hash of the file; cells of the image that are not flat (service/images/flat_parts.py)
        self.busy_cells: LRUCache[bytes, NDArray[np.bool_]] = LRUCache(_MAX_BUSY_CELLS)

    @asynccontextmanager
    async def slot(self, client: str, is_heavy: bool) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for as long as the context lasts."""
        heavy_slot = self._heavy_slots.slot(client) if is_heavy else nullcontext()
        async with heavy_slot, self._slots.slot(client):
            yield

    @contextmanager
    def decoding(
        self, image: "LazyImage", first: _Resizing | None = None
    ) -> Iterator["SharedDecoding"]:
        """Join the client's decoding of a file, or start it; the last user to leave ends it.

        `first` is the size that its caller asks for.
        """
        key = image.client, image.header.digest
        decoding = self._decodings.get(key)
        if decoding is None:
            decoding = self._decodings[key] = SharedDecoding(first)
            decoding.task = asyncio.create_task(
                decoding.run(image.data, self, image.client, image.header.is_heavy)
            )
        decoding.num_users += 1
        try:
            yield decoding
        finally:
            decoding.num_users -= 1
            if decoding.num_users == 0:
                del self._decodings[key]
                decoding.task.cancel()
                # The pixels go, and a cycle: the task's exception refers to the decoding.
                del decoding.decoded, decoding.task


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image decoded in this process, and its pixels at the first size."""

    rgb: Image.Image
    pixels: Mapping[_Resizing, Pixels]

    @classmethod
    def of(cls, data: bytes, limits: ImageLimits, first: _Resizing | None) -> "DecodedImage":
        """Decode a file, and resize it if a first size is given."""
        rgb = decode_image(data, limits)
        if first is None:
            return cls(rgb, {})
        return cls(rgb, {first: np.asarray(resize(rgb, *first), dtype=np.uint8)})

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at exactly `size_wh`."""
        return await in_thread(_resized, self.rgb, size_wh, resample, crop)


@dataclass(slots=True, eq=False)
class SharedDecoding:
    """One decoding of a file, shared by the models and requests of a client."""

    first: _Resizing | None  # resized by the thread that decodes
    decoded: "asyncio.Future[DecodedImage | DecodingProcess]" = field(
        default_factory=asyncio.Future
    )
    resized: "dict[_Resizing, asyncio.Task[Pixels]]" = field(default_factory=dict)
    num_users: int = 0
    task: "asyncio.Task[None]" = field(init=False)

    async def run(self, data: bytes, decoder: ImageDecoder, client: str, is_heavy: bool) -> None:
        """Decode, and hold slot and decoded image until cancelled, which ends a process at once."""
        decoded = self.decoded
        resized = self.resized
        async with decoder.slot(client, is_heavy):
            try:
                async with (
                    decoded_in_process(data, decoder.limits)
                    if is_heavy
                    else nullcontext(
                        await in_thread(DecodedImage.of, data, decoder.limits, self.first)
                    )
                ) as image:
                    decoded.set_result(image)
                    try:
                        await asyncio.Event().wait()
                    finally:
                        for resizing in resized.values():
                            resizing.cancel()
                        await asyncio.gather(*resized.values(), return_exceptions=True)
            except Exception as error:
                decoded.set_exception(error)

    async def pixels(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at exactly `size_wh`.

        Raise `ImageError` or `DecoderEnded`.

        Parts are not shared: an image may have many.
        """
        decoded = await asyncio.shield(self.decoded)
        if crop is not None:
            return await decoded.resized(size_wh, resample, crop)
        key = size_wh, resample
        if isinstance(decoded, DecodedImage) and key in decoded.pixels:
            return decoded.pixels[key]
        if key not in self.resized:
            self.resized[key] = asyncio.create_task(decoded.resized(size_wh, resample))
        return await asyncio.shield(self.resized[key])


@dataclass(slots=True, weakref_slot=True)
class LazyImage:
    """An image file whose pixels are decoded when a model needs them."""

    data: bytes
    decoder: ImageDecoder
    client: str
    header: ImageHeader = field(init=False)  # set by `open`
    open_s: float = field(init=False)
    # Counts the memory of the decoded image, which then serves all parts of it; else it is decoded
    # again for parts that are asked about later.
    hold: Callable[[int], None] | None = field(default=None, init=False)
    kept: DecodedImage | DecodingProcess | None = field(default=None, init=False)

    async def open(self, deadline_s: float = math.inf) -> None:
        """Read the header and hash the file; raise the image's error or `DeadlineExceeded`."""
        start_s = time.monotonic()
        try:
            if len(self.data) <= _SMALL_FILE_BYTES and start_s < deadline_s:
                self.header = read_header(self.data, self.decoder.limits)
            else:
                slot = self.decoder.header_slots.slot(self.client)
                async with asyncio.timeout(deadline_s - start_s), slot:
                    self.header = await in_thread(read_header, self.data, self.decoder.limits)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the header of the image was not read before the deadline"
            ) from error
        except ImageError as error:
            raise _refusal(error) from error
        self.open_s = time.monotonic() - start_s

    @property
    def is_light(self) -> bool:
        """True if the pixels take only a few times the time of a call to a runner."""
        return self.header.is_light or self.kept is not None

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: a hash of everything that determines the features.

        An adapter without a vision encoder has the key of its base, whose features it uses.
        """
        width, height = manifest.image_size_wh
        build_key = manifest.base_build_key if VISION_ENCODER_FILE not in manifest.files else None
        return blake3(
            self.header.digest + f"{build_key or manifest.build_key} {width}x{height}".encode()
        ).hexdigest()

    async def pixels(self, manifest: Manifest, crop: PixelBox | None = None) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at a model's input size.

        Raise `UnsupportedImage` or `NotReady`.

        A cancelled caller does not cancel others that share the decoding.
        """
        try:
            if self.kept is not None:
                return await self.kept.resized(manifest.image_size_wh, manifest.resample, crop)
            first = None if crop else (manifest.image_size_wh, manifest.resample)
            with self.decoder.decoding(self, first) as decoding:
                pixels = await decoding.pixels(manifest.image_size_wh, manifest.resample, crop)
                if self.hold is not None:
                    self._keep(decoding.decoded.result(), self.hold)
                return pixels
        except (ImageError, DecoderEnded) as error:
            raise _refusal(error) from error

    async def strips(self, num_rows: int) -> AsyncGenerator[Pixels, None]:
        """Yield the pixels (H, W, 3) of the image at its own size, so many rows at a time.

        Raise `UnsupportedImage` or `NotReady`.
        """
        width, height = self.header.size_wh
        with self.decoder.decoding(self) as decoding:
            try:
                decoded = await asyncio.shield(decoding.decoded)
                if self.hold is not None:
                    self._keep(decoded, self.hold)
                for top in range(0, height, num_rows):
                    bottom = min(top + num_rows, height)
                    strip = (0, top, width, bottom)
                    yield await decoded.resized((width, bottom - top), _NEAREST, strip)
            except (ImageError, DecoderEnded) as error:
                raise _refusal(error) from error

    def _keep(self, decoded: DecodedImage | DecodingProcess, hold: Callable[[int], None]) -> None:
        """Keep the decoded image for later parts, unless memory is short."""
        if self.kept is None:
            with suppress(Overloaded):  # no memory: a later part decodes the file again
                hold(_RGB_BYTES * math.prod(self.header.size_wh))
                self.kept = decoded
                if isinstance(decoded, DecodingProcess):
                    decoded.keep()

    async def aclose(self) -> None:
        """Give up the decoded image."""
        kept = self.kept
        self.kept = None
        self.hold = None
        if isinstance(kept, DecodingProcess):
            await kept.release()


def _refusal(error: ImageError | DecoderEnded) -> ImageTooLarge | UnsupportedImage | NotReady:
    """Return the error that a client receives."""
    if isinstance(error, DecoderEnded):
        return NotReady(f"{error}; retry the request")
    if isinstance(error, OversizedImage):
        return ImageTooLarge(str(error), "image", error.size_wh)
    return UnsupportedImage(str(error), "image")


def _resized(
    rgb: Image.Image, size_wh: tuple[int, int], resample: int, crop: PixelBox | None
) -> Pixels:
    return np.asarray(resize(rgb, size_wh, resample, crop), dtype=np.uint8)


async def in_thread(
    function: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs
) -> ResultT:
    """Run `function` in a thread; if cancelled, wait for it to return first.

    A thread cannot be stopped: a cancelled request counts as in flight until its thread is free.
    """
    task = asyncio.current_task()
    name = "" if task is None else task.get_name()
    work = partial(contextvars.copy_context().run, function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, work)
    in_threads.append(name)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
    finally:
        in_threads.remove(name)
