"""Images as callers hold them, to encoded files: arrays, tensors, PIL images, paths, file objects.

An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a tensor may have its channels first; `uint8`
or floats from 0 to 1; RGB, or BGR as OpenCV has it.
"""

import io
import os
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych_client.errors import DiptychError, new_error
from diptych_client.requests import StoredImage


@runtime_checkable
class ReadableFile(Protocol):
    """A file object in binary mode."""

    def read(self) -> bytes: ...


@runtime_checkable
class Tensor(Protocol):
    """A `torch.Tensor`, without importing torch."""

    def detach(self) -> Any: ...


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Image.Image
    | StoredImage
    | NDArray[Any]
    | Tensor
    | ReadableFile
)
_URL_SCHEMES = ("http://", "https://")
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA"}
_CHANNELS = (1, 3, 4)
_KINDS = "a path, a URL, bytes, a file object, a PIL image, a numpy array or a torch tensor"


def sent_image(image: ImageSource, bgr: bool = False) -> bytes | str:
    """Return the URL or the id of an image that the service reads or has, or a file."""
    if isinstance(image, StoredImage):
        return image.sent
    if isinstance(image, str) and image.startswith(_URL_SCHEMES):
        return image
    return encoded_image(image, bgr)


def encoded_image(image: ImageSource, bgr: bool = False) -> bytes:
    """Return the bytes of a file, or pixels, without EXIF data, as PNG; raise `DiptychError`."""
    match image:
        case bytes() | bytearray() | memoryview():
            return bytes(image)
        case StoredImage():
            return image.data
        case Image.Image():
            return _png(image)
        case str() | os.PathLike() | ReadableFile():
            is_open = isinstance(image, ReadableFile)
            try:
                data = image.read() if is_open else Path(image).read_bytes()  # type: ignore[union-attr,arg-type]
            except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a closed file
                message = f"cannot read the image: {error}"
                raise new_error("unreadable_file", message, "image") from error
            if isinstance(data, bytes):
                return data
        case np.ndarray():
            return _png(_from_array(image, bgr))
        case Tensor():
            plain = image.detach().cpu()
            array = (plain.float() if plain.is_floating_point() else plain).numpy()
            is_first = array.ndim == 3 and array.shape[0] in _CHANNELS
            if is_first and array.shape[2] not in _CHANNELS:
                array = array.transpose(1, 2, 0)
            return _png(_from_array(array, bgr))
    kind = type(image).__name__
    hint = "; for several images use predict_many" if isinstance(image, list | tuple) else ""
    raise _refusal(f"an image must be {_KINDS}, got {kind}{hint}")


def _from_array(array: NDArray[Any], bgr: bool) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if not is_image or not array.size:
        expected = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        raise _refusal(f"an array must be {expected}, got {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        low = float(array.min())
        high = float(array.max())
        if not (low >= 0 and high <= 1):
            values = f"floats from {low:.3g} to {high:.3g}"
            raise _refusal(f"an array of floats must be 0 to 1, got {values}")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise _refusal(f"an array must be uint8, or floats from 0 to 1, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if bgr and array.ndim == 3:
        array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(array))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG")
    return file.getvalue()


def _refusal(message: str) -> DiptychError:
    return new_error("invalid_request", message, "image")
