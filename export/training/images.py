"""Scenes as the pixels that a model sees, drawn at random sizes and now and then blurred or compressed."""

import io

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from export.scenes import Scene, render_scene
from export.scenes.scene import CANVAS_PX

_SIZES_PX = (90, 512)  # above, only the reduction to the model's size would differ
_NATIVE_SHARE = 0.2  # drawn at the model's own size: cheap, and the sharpest
_BLUR_SHARE, _MAX_BLUR = 0.2, 0.006  # radius as a share of the side
_JPEG_SHARE, _JPEG_QUALITIES = 0.3, (50, 95)


def augmented_pixels(scene: Scene, rng: Generator, side_px: int = CANVAS_PX) -> NDArray[np.uint8]:
    """Return the scene as (side_px, side_px, 3), resized by the same filter as both families' image processors."""
    image = render_scene(scene, _sampled_size(rng, side_px))
    if rng.random() < _BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, _MAX_BLUR) * image.width))
    if rng.random() < _JPEG_SHARE:
        image = _compressed(image, int(rng.integers(*_JPEG_QUALITIES)))
    return np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _sampled_size(rng: Generator, side_px: int) -> int:
    smallest, largest = np.log(_SIZES_PX)
    return side_px if rng.random() < _NATIVE_SHARE else round(float(np.exp(rng.uniform(smallest, largest))))


def _compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)
