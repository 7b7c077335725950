"""Image files: header facts, decoding to upright RGB, and resizing to the pixels of one model.

Format and size are read from the header and checked before any pixel is decoded. It knows no model.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from service.errors import ImageTooLarge, UnsupportedImage

Image.MAX_IMAGE_PIXELS = None  # Pillow raises and warns above its own limit; ours is checked below

FORMATS = ("JPEG", "PNG", "WEBP")
# By EXIF orientation, as Pillow's ImageOps.exif_transpose, which also rewrites the tags and fails where one is odd.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = {  # turns that swap width and height
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}
_BACKGROUND_RGB = (255, 255, 255)  # behind transparent pixels


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts of an image file that need no pixels."""

    size_wh: tuple[int, int]  # upright, pixels: the frame of every result

    @property
    def num_pixels(self) -> int:
        """Width times height."""
        return self.size_wh[0] * self.size_wh[1]


def read_header(data: bytes, max_pixels: int) -> ImageHeader:
    """Return the facts in the header; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, max_pixels)
    width, height = image.size
    is_on_its_side = _may_be_turned(image, data) and _turn(image) in _SWAPPING
    return ImageHeader((height, width) if is_on_its_side else (width, height))


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Return the upright image in mode RGB; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, max_pixels)
    with _decoding(image):
        image.load()
        turn = _turn(image)
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def resize(rgb: Image.Image, size_wh: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) at exactly `size_wh`; the models squash, so the aspect ratio is not kept."""
    return np.asarray(rgb.resize(size_wh, Image.Resampling(resample)), dtype=np.uint8)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UnsupportedImage(f"the image is not a {', '.join(FORMATS)} file that can be read", "image") from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels; at most {max_pixels} are allowed", "image"
        )
    return image


def _may_be_turned(image: Image.Image, data: bytes) -> bool:
    """Return False for a PNG without EXIF, of which Pillow would decode all pixels in search of it."""
    return image.format != "PNG" or "exif" in image.info or b"eXIf" in data or b"Raw profile type" in data


def _turn(image: Image.Image) -> Image.Transpose | None:
    with _decoding(image):
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))


@contextmanager
def _decoding(image: Image.Image) -> Iterator[None]:
    """Raise `UnsupportedImage` for what Pillow raises on a damaged file."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, AssertionError) as error:
        # AssertionError: Pillow 13 asserts that an image of indices has a palette, which a damaged file may lack.
        message = f"the {image.format} image is broken or cut off and cannot be decoded"
        raise UnsupportedImage(message, "image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: conversion would clip it; a tone that means transparent is kept
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return _flatten(image) if image.has_transparency_data else image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Return `image` over white: transparent pixels hold any colour at all."""
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*_BACKGROUND_RGB, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")
