"""The image of a request: header, hash, and pixels only if a runner needs them.

Decoded images are large and slow to make: their number is bounded, and no client takes all places.
Ordinary images are decoded in threads, heavy ones in processes that end with their requests and
leave one place free. Headers take no place: they are read fast and do not wait for pixels.

A process starts for one image in about a tenth of a second (service/images/decoding_program.py),
has a low priority and a sandbox, and dies with the gateway: a thread could not be stopped, and its
memory would be the gateway's. It does not get the gateway's environment, which may have secrets.
"""

import asyncio
import functools
import logging
import math
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from blake3 import blake3
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image

from imaging.containers import ImageError, OversizedImage
from imaging.files import ImageHeader, ImageLimits, PixelBox, decode_image, read_header, resize
from service.admission.fair_queue import ClientSlots
from service.admission.threads import DECODING
from service.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError, UnsupportedImage
from wire.artifacts.manifest import VISION_ENCODER_FILE, Manifest
from wire.host import anonymous_file, library_environment, num_cores
from wire.pixels import Pixels

logger = logging.getLogger(__name__)

# An image takes up to 16 bytes a pixel while it is decoded, and more threads than cores only wait.
MAX_DECODED_IMAGES = min(max(2, num_cores()), 8)
_PROGRAM = "service.images.decoding_program"
_ROOT = Path(__file__).parents[2]  # where modules are imported from
_BUFFER_BYTES = 32_000_000  # more than the pixels of any model's input
# a header is read in less time than a thread takes to start, and in 0.02 s if it is malicious
_SMALL_FILE_BYTES = 64_000
_RGB_BYTES = 4  # a pixel in Pillow
_MAX_BUSY_CELLS = 64  # images; 200 kB for one of 50 megapixels
_Resizing = tuple[tuple[int, int], int]  # size, resampling filter


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image decoded in this process, and its pixels at the size that was asked for first."""

    rgb: Image.Image
    pixels: Mapping[_Resizing, Pixels]

    @classmethod
    def of(cls, data: bytes, limits: ImageLimits, first: _Resizing | None) -> "DecodedImage":
        """Decode a file and, if a size is given, resize it: one thread for a new image."""
        rgb = decode_image(data, limits)
        return cls(rgb, {} if first is None else {first: _resized(rgb, *first)})

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        if crop is None and (size_wh, resample) in self.pixels:
            return self.pixels[size_wh, resample]
        return await DECODING.run(_resized, self.rgb, size_wh, resample, crop)


class DecodingProcess:
    """A process that decodes one image; it is killed when all its users have released it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()
        self.num_users = 1

    async def release(self) -> None:
        self.num_users -= 1
        if self.num_users == 0:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at exactly `size_wh`.

        Raise `NotReady` if the process has ended.
        """
        # A caller that is cancelled must not leave its pixels in the pipe for the next one.
        return await asyncio.shield(asyncio.ensure_future(self._resized(size_wh, resample, crop)))

    async def _resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None
    ) -> Pixels:
        width, height = size_wh
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            numbers = (width, height, resample, *(crop or ()))
            self._process.stdin.write(" ".join(map(str, numbers)).encode() + b"\n")
            try:
                pixels = await self._process.stdout.readexactly(width * height * 3)
            except asyncio.IncompleteReadError as error:
                raise await _ended(self._process) from error
        return np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)


@asynccontextmanager
async def decoded_in_process(data: bytes, limits: ImageLimits) -> AsyncIterator[DecodingProcess]:
    """Decode in a process, released at the end; raise `ImageError` or `NotReady`."""
    with open(anonymous_file("image"), "wb", buffering=0) as file:
        await DECODING.run(file.write, data)
        file.seek(0)
        arguments = (file.fileno(), os.getpid(), limits.max_pixels, limits.max_side_px)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", _PROGRAM, *map(str, arguments)),
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=(file.fileno(),),
            cwd=_ROOT,
            env=library_environment(),
            limit=_BUFFER_BYTES,
        )
    decoding = DecodingProcess(process)
    try:
        assert process.stdout is not None
        report = await process.stdout.readline()
        if not report:
            raise await _ended(process)
        sandbox, _, message = report.decode().rstrip("\n").partition(" ")
        if sandbox != "sandboxed":
            _warn_once(os.uname().machine)
        if message:
            raise ImageError(message)
        yield decoding
    finally:
        await decoding.release()


@functools.cache
def _warn_once(machine: str) -> None:
    problem = "heavy images are decoded without a seccomp filter"
    logger.warning("%s: this kernel refuses it or %s has none", problem, machine)


async def _ended(process: Process) -> NotReady:
    status = await process.wait()
    return NotReady(f"the decoder of the image ended with status {status}; retry the request")


@dataclass(slots=True)
class SharedDecoding:
    """One decoding of a file, shared by the models and requests of a client."""

    decoded: "asyncio.Future[DecodedImage | DecodingProcess]"
    task: "asyncio.Task[None]"
    num_users: int = 0


class ImageDecoder:
    """The limits on an image, decodings in progress, and slots: a client gets all but one.

    Heavy images together get all but one, too, so that those of others never take the place of an
    ordinary one.
    """

    def __init__(self, limits: ImageLimits, num_slots: int) -> None:
        self.limits = limits
        self._slots = ClientSlots(num_slots, num_slots - 1)
        self._heavy_slots = ClientSlots(num_slots - 1, max(1, num_slots - 2))
        # keys: client and hash of the file
        self._decodings: dict[tuple[str, bytes], SharedDecoding] = {}
        # key: hash of the file; cells of the image that are not flat (inference/prediction.py)
        self.busy_cells: LRUCache[bytes, NDArray[np.bool_]] = LRUCache(_MAX_BUSY_CELLS)

    @asynccontextmanager
    async def slot(self, client: str, is_heavy: bool) -> AsyncIterator[None]:
        heavy_slot = self._heavy_slots.slot(client) if is_heavy else nullcontext()
        async with heavy_slot, self._slots.slot(client):
            yield

    @contextmanager
    def decoding(
        self, image: "LazyImage", first: _Resizing | None = None
    ) -> Iterator[SharedDecoding]:
        """Join the client's decoding of a file, or start it; the last user to leave cancels it."""
        key = image.client, image.header.digest
        decoding = self._decodings.get(key)
        if decoding is None:
            decoded = asyncio.Future[DecodedImage | DecodingProcess]()
            task = asyncio.create_task(self._decode(image, first, decoded))
            decoding = self._decodings[key] = SharedDecoding(decoded, task)
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

    async def _decode(
        self,
        image: "LazyImage",
        first: _Resizing | None,
        decoded: "asyncio.Future[DecodedImage | DecodingProcess]",
    ) -> None:
        """Decode, and hold slot and process until cancelled, which ends the process at once."""
        async with self.slot(image.client, image.header.is_heavy):
            try:
                if not image.header.is_heavy:
                    decoded.set_result(
                        await DECODING.run(DecodedImage.of, image.data, self.limits, first)
                    )
                    await asyncio.Event().wait()
                async with decoded_in_process(image.data, self.limits) as process:
                    decoded.set_result(process)
                    await asyncio.Event().wait()
            except Exception as error:
                decoded.set_exception(error)


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
    decoded: DecodedImage | DecodingProcess | None = field(default=None, init=False)

    async def open(self, deadline_s: float = math.inf) -> None:
        """Read the header and hash the file; raise the image's error or `DeadlineExceeded`."""
        start_s = time.monotonic()
        try:
            if len(self.data) <= _SMALL_FILE_BYTES and start_s < deadline_s:
                self.header = read_header(self.data, self.decoder.limits)
            else:
                async with asyncio.timeout(deadline_s - start_s):
                    self.header = await DECODING.run(read_header, self.data, self.decoder.limits)
        except TimeoutError as error:
            message = "the header of the image was not read before the deadline"
            raise DeadlineExceeded(message) from error
        except ImageError as error:
            raise _refusal(error) from error
        self.open_s = time.monotonic() - start_s

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: a hash of everything that determines the features.

        An adapter without a vision encoder has the key of its base, whose features it uses.
        """
        width, height = manifest.image_size_wh
        build_key = manifest.base_build_key if VISION_ENCODER_FILE not in manifest.files else None
        build = f"{build_key or manifest.build_key} {width}x{height}"
        return blake3(self.header.digest + build.encode()).hexdigest()

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        """Return the pixels (H, W, 3) of the image, or of a part, at exactly `size_wh`.

        Raise `UnsupportedImage` or `NotReady`. A cancelled caller does not cancel others that share
        the decoding.
        """
        try:
            if self.decoded is not None:
                return await self.decoded.resized(size_wh, resample, crop)
            with self.decoder.decoding(self, None if crop else (size_wh, resample)) as decoding:
                decoded = await asyncio.shield(decoding.decoded)
                if self.hold is not None and self.decoded is None:
                    with suppress(Overloaded):  # no memory: a later part decodes the file again
                        self.hold(_RGB_BYTES * math.prod(self.header.size_wh))
                        self.decoded = decoded
                        self.header = replace(self.header, is_light=True)
                        if isinstance(decoded, DecodingProcess):
                            decoded.num_users += 1
                return await decoded.resized(size_wh, resample, crop)
        except ImageError as error:
            raise _refusal(error) from error

    async def aclose(self) -> None:
        decoded = self.decoded
        self.decoded = None
        self.hold = None
        if isinstance(decoded, DecodingProcess):
            await decoded.release()


@dataclass(slots=True)
class ImageView(LazyImage):
    """The pixels of `box` in an open image, `whole`; its key is that of the file and the box."""

    whole: LazyImage
    box: PixelBox

    @classmethod
    def of(cls, whole: LazyImage, box: PixelBox) -> "ImageView":
        """Return the view of an image, or of another view, which is open."""
        left, top, right, bottom = box
        if isinstance(whole, ImageView):  # a part of a part is a part of the whole
            across, down, _, _ = whole.box
            box = (left + across, top + down, right + across, bottom + down)
            return cls.of(whole.whole, box)
        view = cls(whole.data, whole.decoder, whole.client, whole, box)
        digest = blake3(whole.header.digest + f"crop {left} {top} {right} {bottom}".encode())
        size_wh = (right - left, bottom - top)
        view.header = replace(whole.header, size_wh=size_wh, digest=digest.digest())
        view.open_s = 0.0  # the file has been opened once
        return view

    async def resized(
        self, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
    ) -> Pixels:
        assert crop is None, "`of` returns a part of a part"
        return await self.whole.resized(size_wh, resample, self.box)


def _refusal(error: ImageError) -> ServiceError:
    if isinstance(error, OversizedImage):
        return ServiceError(str(error), "image", "image_too_large")
    return UnsupportedImage(str(error), "image")


def _resized(
    rgb: Image.Image, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
) -> Pixels:
    return np.asarray(resize(rgb, size_wh, resample, crop), dtype=np.uint8)
