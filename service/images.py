"""An image's bytes to checked RGB, and RGB to the pixels of one model.

Format and size are read from the header and checked before any pixel is decoded. It knows no model.
"""

import io
import time
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
_BACKGROUND_RGB = (255, 255, 255)  # behind transparent pixels


@dataclass(frozen=True, slots=True)
class RgbImage:
    """A decoded image, upright: its EXIF orientation is applied."""

    image: Image.Image  # mode RGB
    decode_s: float

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels: the frame of every result."""
        return self.image.size


def check_image(data: bytes, max_pixels: int) -> int:
    """Return the number of pixels; raise `UnsupportedImage` or `ImageTooLarge` by what the header says."""
    width, height = _open(data, max_pixels).size
    return width * height


def decode_image(data: bytes, max_pixels: int) -> RgbImage:
    """Return the upright RGB image; raise `UnsupportedImage` or `ImageTooLarge`."""
    start_s = time.monotonic()
    rgb = _upright_rgb(_open(data, max_pixels))
    return RgbImage(rgb, time.monotonic() - start_s)


def resize(image: RgbImage, size_wh: tuple[int, int], resample: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, 3) at exactly `size_wh`; the models squash, so the aspect ratio is not kept."""
    return np.asarray(image.image.resize(size_wh, Image.Resampling(resample)), dtype=np.uint8)


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


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        image.load()
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)
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
