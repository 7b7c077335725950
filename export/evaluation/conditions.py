"""The conditions under which a scene is shown: its size, its shape, its file format, its sharpness.

A condition turns a scene into an image file. Every other condition than `plain` changes one thing of it. Knows no
questions; the truth follows the image's size (`Question.scaled`).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageFilter

from export.scenes import Scene, render_scene

PLAIN_PX, SMALL_PX, LARGE_PX = 384, 100, 2000
STRETCHED_SIZE_WH = (576, 384)
JPEG_QUALITY = 60
BLUR_OF_SIDE = 0.004  # standard deviation of the Gaussian as a share of the side: 1.5 px of 384


@dataclass(frozen=True, slots=True)
class SceneImage:
    """An image file as it is sent."""

    data: bytes
    media_type: str
    size_wh: tuple[int, int]


Condition = Callable[[Scene], SceneImage]


def png_image(image: Image.Image) -> SceneImage:
    """Return the image as PNG, packed lightly: the pixels are the same, and it takes a quarter of the time."""
    return _encoded(image, "PNG", compress_level=1)


def _encoded(image: Image.Image, image_format: str, **options: int) -> SceneImage:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return SceneImage(file.getvalue(), f"image/{image_format.lower()}", image.size)


def _plain(scene: Scene) -> SceneImage:
    return png_image(render_scene(scene, PLAIN_PX))


def _small(scene: Scene) -> SceneImage:
    return png_image(render_scene(scene, SMALL_PX))


def _large(scene: Scene) -> SceneImage:
    return png_image(render_scene(scene, LARGE_PX))


def _jpeg(scene: Scene) -> SceneImage:
    return _encoded(render_scene(scene, PLAIN_PX), "JPEG", quality=JPEG_QUALITY)


def _blurred(scene: Scene) -> SceneImage:
    return png_image(render_scene(scene, PLAIN_PX).filter(ImageFilter.GaussianBlur(BLUR_OF_SIDE * PLAIN_PX)))


def _stretched(scene: Scene) -> SceneImage:
    return png_image(render_scene(scene, PLAIN_PX).resize(STRETCHED_SIZE_WH))


CONDITIONS: dict[str, Condition] = {
    "plain": _plain,
    "small": _small,
    "large": _large,
    "jpeg": _jpeg,
    "blurred": _blurred,
    "stretched": _stretched,
}
