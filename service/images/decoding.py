"""The image file of a request: its header and hash, and its pixels, decoded and resized only if a runner needs them.

Format and size are read from the header and checked before any pixel is decoded; together they bound time and memory
of decoding. Decoded images are large and slow to make: their number is bounded, and no client can take all places.
"""

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from runners.artifacts.manifest import Manifest
from runners.transport.pixels import Pixels
from service.admission.load import ClientSlots
from service.errors import ImageTooLarge, UnsupportedImage

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns and raises; `_open` checks ours

FORMATS = ("JPEG", "PNG", "WEBP")
# By EXIF orientation, as in Pillow's ImageOps.exif_transpose, which also rewrites the tags and fails on malformed ones.
_TRANSPOSITIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING_SIDES = {  # width becomes height
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}
_BACKGROUND_RGB = (255, 255, 255)  # behind transparent pixels
# A JPEG may repeat a scan at will, and each one is decoded over all pixels. Usual are up to 10: libjpeg's progression.
_MAX_FULL_SCANS = 16  # of an image of the maximum size; a smaller one may have more
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed zero nor a restart (ITU T.81, B.1.1)

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on an image, checked by its header."""

    max_pixels: int
    max_side_px: int = 20_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Properties of an image file that are known before decoding."""

    size_wh: tuple[int, int]  # of the upright image, px: results are in this frame
    digest: bytes  # of the file


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
        self.header = await in_thread(read_header, self._data, self._decoder.limits)
        self.open_s = time.monotonic() - start_s

    def key(self, manifest: Manifest) -> str:
        """Return the image key, hexadecimal: the hash of everything that determines the features of this image."""
        width, height = manifest.image_size_wh
        return blake3(self.header.digest + f"{manifest.runner_build_key} {width}x{height}".encode()).hexdigest()

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


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Read the header of an image file and hash the file; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, limits)
    width, height = image.size
    # Pillow would decode all pixels of a PNG without EXIF to look for an orientation.
    may_be_on_side = image.format != "PNG" or "exif" in image.info or b"eXIf" in data or b"Raw profile type" in data
    is_on_side = may_be_on_side and _transposition(image) in _SWAPPING_SIDES
    return ImageHeader((height, width) if is_on_side else (width, height), blake3(data).digest())


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the upright image in mode RGB; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, limits)
    with _decoding_errors(image):
        image.load()
        transposition = _transposition(image)
        rgb = _to_rgb(image)
        return rgb if transposition is None else rgb.transpose(transposition)


def resize(rgb: Image.Image, size_wh: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) at exactly `size_wh`, without keeping the aspect ratio, as the models were trained."""
    return np.asarray(rgb.resize(size_wh, Image.Resampling(resample)), dtype=np.uint8)


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        message = f"the image cannot be read; it must be a file in one of the formats {', '.join(FORMATS)}"
        raise UnsupportedImage(message, "image") from error
    width, height = image.size
    found = f"the image has {width} x {height}"
    if width * height > limits.max_pixels:
        message = f"{found} = {width * height} pixels; the maximum is {limits.max_pixels}"
        raise ImageTooLarge(message, "image")
    if max(image.size) > limits.max_side_px:
        raise ImageTooLarge(f"{found} pixels; the maximum of a side is {limits.max_side_px}", "image")
    if image.format == "JPEG":
        _check_scans(data, image.size, limits)
    return image


def _check_scans(data: bytes, size_wh: tuple[int, int], limits: ImageLimits) -> None:
    allowed = _MAX_FULL_SCANS * limits.max_pixels // (size_wh[0] * size_wh[1])
    # Two bytes are counted faster than markers are followed; in metadata they may be anything.
    if data.count(b"\xff\xda") > allowed and (num_scans := _num_scans(data)) > allowed:
        message = f"the JPEG has {num_scans} scans of {size_wh[0]} x {size_wh[1]} pixels; the maximum is {allowed}"
        raise ImageTooLarge(message, "image")


def _num_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG up to its end; data behind it, as of a motion photo, do not count."""
    num_scans, position = 0, 2  # behind the start of image
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1][0] != _END_OF_IMAGE:
        num_scans += marker[1][0] == _START_OF_SCAN
        # Another marker than these has a length of at least 2, which includes itself.
        position = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
    return num_scans


def _transposition(image: Image.Image) -> Image.Transpose | None:
    with _decoding_errors(image):
        return _TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation))


@contextmanager
def _decoding_errors(image: Image.Image) -> Iterator[None]:
    """Raise `UnsupportedImage` for the exceptions of Pillow on a damaged file."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, AssertionError) as error:
        # AssertionError: Pillow 13 asserts that a palette image has its palette, which a damaged file may lack.
        message = f"the {image.format} image is damaged or truncated and cannot be decoded"
        raise UnsupportedImage(message, "image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: `convert` would clip it; a transparent tone is ignored
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return _flatten(image) if image.has_transparency_data else image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Return `image` over white: the colour of transparent pixels is undefined."""
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*_BACKGROUND_RGB, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")
