"""Images as callers hold them become files; large ones are sent smaller, and answers scaled back.

An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a tensor may have its channels first; RGB, or
BGR as OpenCV has it; tones are floats from 0 to 1, integers from 0 to 255, of `uint16` to 65535.
Knows no connection.
"""

import io
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile as OpenedImage

from diptych_client.conversion import (
    DAMAGED,
    converted,
    encoded,
    format_of,
    reader,
    rgb_of,
    split_page,
)
from diptych_client.errors import new_error
from diptych_client.geometry import ImageSize
from diptych_client.requests import StoredImage
from diptych_client.results import (
    Answer,
    Comparison,
    Instance,
    Item,
    Result,
    TextRegion,
    TextResult,
)

DEFAULT_MAX_PIXELS = 50_000_000  # DIPTYCH_MAX_IMAGE_PIXELS of a service, by default
_MAX_SIDE_PX = 20_000  # a service's maximum
_MAX_BYTES = 19_900_000  # DIPTYCH_MAX_BODY_BYTES, without the other fields
_MAX_OPENED_PIXELS = 2_000_000_000
_JPEG_QUALITY = 90

logger = logging.getLogger("diptych_client")
ResultT = TypeVar("ResultT")
_URL_SCHEMES = ("http://", "https://")
_CHANNELS = (1, 3, 4)


@runtime_checkable
class ReadableFile(Protocol):
    """A file object in binary mode."""

    def read(self) -> bytes: ...


@runtime_checkable
class Tensor(Protocol):
    """A `torch.Tensor`, without importing torch."""

    def detach(self) -> Any: ...


_File: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
ImageSource: TypeAlias = _File | Image.Image | StoredImage | NDArray[Any] | Tensor | ReadableFile


def sent_image(image: ImageSource, bgr: bool = False) -> bytes | str:
    """Return the URL or the id of an image that the service reads or has, or a file."""
    if isinstance(image, StoredImage):
        return image.data if image.id is None else image.id
    if isinstance(image, str) and image.startswith(_URL_SCHEMES):
        return image
    return encoded_image(image, bgr)


def encoded_image(image: ImageSource, bgr: bool = False) -> bytes:
    """Return a file, converted if need be, or pixels, without EXIF data, as PNG."""
    match image:
        case StoredImage():
            return image.data
        case Image.Image():
            return encoded(image)
        case np.ndarray():
            return encoded(_from_array(image, bgr))
        case Tensor() if not isinstance(image, ReadableFile):
            plain = image.detach().cpu()
            array = (plain.float() if plain.is_floating_point() else plain).numpy()
            is_first = array.ndim == 3 and array.shape[0] in _CHANNELS
            if is_first and array.shape[2] not in _CHANNELS:
                array = array.transpose(1, 2, 0)
            return encoded(_from_array(array, bgr))
    try:
        match image:
            case bytes() | bytearray() | memoryview():
                return converted(bytes(image))
            case str() | os.PathLike():
                path, page = split_page(Path(image))
                return converted(path.read_bytes(), page)
            case ReadableFile() if isinstance(data := image.read(), bytes):
                return converted(data)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a closed file
        message = f"cannot read the image: {error!s:.300}"
        raise new_error("unreadable_file", message, "image") from error
    kinds = "a path, a URL, bytes, a file object, a PIL image, a numpy array or a torch tensor"
    message = f"an image must be {kinds}, got {type(image).__name__}"
    raise new_error("invalid_request", message, "image")


def _from_array(array: NDArray[Any], bgr: bool) -> Image.Image:
    has_channels = array.ndim == 3 and array.shape[2] in _CHANNELS
    is_image = array.size > 0 and (array.ndim == 2 or has_channels)
    pixels = _eight_bits(array) if is_image else array
    if not is_image or pixels.dtype != np.uint8:
        shapes = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        values = "floats from 0 to 1, integers from 0 to 255, uint16 to 65535, or bool"
        message = f"an array must be {shapes}, {values}; got {array.dtype} {array.shape}"
        raise new_error("invalid_request", message, "image")
    if has_channels and array.shape[2] == 1:
        pixels = pixels[:, :, 0]
    elif has_channels and bgr:
        pixels = pixels[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _eight_bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return tones from 0 to 255, or the array if its values have no such meaning."""
    if array.dtype.kind == "b":
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return (array >> 8).astype(np.uint8)
    is_float = array.dtype.kind == "f"
    if array.dtype.kind in "iuf" and array.min() >= 0 and array.max() <= (1 if is_float else 255):
        return (np.round(array * 255) if is_float else array).astype(np.uint8)
    return array


@dataclass(frozen=True, slots=True)
class Downscaled:
    """A smaller JPEG, the size of the upright original, and the scale between them."""

    data: bytes
    original: ImageSize
    scale: float


def downscaled(data: bytes, max_pixels: int) -> Downscaled | None:
    """Return a smaller image, or None if the file is small enough or not an image."""
    try:
        image = reader(format_of(data))(io.BytesIO(data))
        return _smaller(image, len(data), max_pixels)
    except DAMAGED:  # the service says how
        return None


def _smaller(image: OpenedImage, num_bytes: int, max_pixels: int) -> Downscaled | None:
    width, height = image.size
    scale = min(1.0, math.sqrt(max_pixels / (width * height)), _MAX_SIDE_PX / max(image.size))
    is_small = scale == 1 and num_bytes <= _MAX_BYTES
    if is_small or width * height > _MAX_OPENED_PIXELS:
        return None
    image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
    upright = rgb_of(ImageOps.exif_transpose(image))
    original = ImageSize(width, height)
    if (upright.width > upright.height) != (width > height):
        original = ImageSize(height, width)
    while True:
        size_wh = (max(1, int(original.width * scale)), max(1, int(original.height * scale)))
        file = io.BytesIO()
        upright.resize(size_wh, reducing_gap=2.0).save(file, "JPEG", quality=_JPEG_QUALITY)
        if file.tell() <= _MAX_BYTES:
            break
        scale *= 0.8
    sizes = (width, height, num_bytes / 1e6, *size_wh, file.tell() / 1e6)
    logger.warning("an image of %d x %d pixels, %.1f MB, is sent as %d x %d, %.1f MB", *sizes)
    return Downscaled(file.getvalue(), original, scale)


def restored(result: ResultT, original: ImageSize | None) -> ResultT:
    """Return an answer, or each of a comparison, in pixels of the original, if it was larger."""
    restored_result: object = result
    if original is not None and isinstance(result, Comparison):
        answers = tuple(restored(answer, original) for answer in result.answers)
        restored_result = replace(result, image=original, answers=answers)
    elif original is not None and isinstance(result, Answer):
        scaled = scaled_result(result.result, result.image, original)
        restored_result = replace(result, image=original, result=scaled)
    return restored_result  # type: ignore[return-value]


def scaled_result(result: Result, sent: ImageSize, original: ImageSize) -> Result:
    scale = np.array([original.width / sent.width, original.height / sent.height])

    def points(ring: Sequence[Sequence[float]]) -> Any:
        return tuple(map(tuple, (np.array(ring) * scale).tolist()))

    def scaled_item(item: Item) -> Any:
        if isinstance(item, TextRegion):
            return replace(item, quad_xy=points(item.quad_xy))
        (x1, y1), (x2, y2) = points((item.box_xyxy[:2], item.box_xyxy[2:]))
        item = replace(item, box_xyxy=(x1, y1, x2, y2))
        if isinstance(item, Instance) and item.polygons_xy is not None:
            item = replace(item, polygons_xy=tuple(map(points, item.polygons_xy)))
        return item

    if isinstance(result, TextResult):
        return result
    return type(result)(tuple(map(scaled_item, result.items)))
