"""The conditions of an evaluation: size, aspect ratio, file format and sharpness of a scene's
image.

A condition renders a scene into an image file. Each but `plain` changes one property of it. The
true answers follow the image's size (`Question.scaled`).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageFilter

from export.scenes import Scene, render_scene

PLAIN_PX = 384
SMALL_PX = 100
LARGE_PX = 2000
STRETCHED_SIZE_WH = (576, 384)
JPEG_QUALITY = 60
GREEN_BLUE_RED = (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0)  # a matrix (3, 4)
BLUR_OF_SIDE = 0.004  # standard deviation of the Gaussian as a share of the side: 1.5 px of 384


@dataclass(frozen=True, slots=True)
class SceneImage:
    """An encoded image file."""

    data: bytes
    media_type: str
    size_wh: tuple[int, int]


Rendering = Callable[[Scene], SceneImage]


def png_image(image: Image.Image) -> SceneImage:
    """Return the image as PNG at the lightest compression, which takes a quarter of the time."""
    return _encoded(image, "PNG", compress_level=1)


def _encoded(image: Image.Image, image_format: str, **options: int) -> SceneImage:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return SceneImage(file.getvalue(), f"image/{image_format.lower()}", image.size)


def _jpeg_image(image: Image.Image) -> SceneImage:
    return _encoded(image, "JPEG", quality=JPEG_QUALITY)


def _blurred_image(image: Image.Image) -> SceneImage:
    return png_image(image.filter(ImageFilter.GaussianBlur(BLUR_OF_SIDE * image.width)))


@dataclass(frozen=True, slots=True)
class Condition:
    """The side at which a scene is rendered, and the file that is made of the image."""

    size_px: int = PLAIN_PX
    encode: Callable[[Image.Image], SceneImage] = png_image

    def __call__(self, scene: Scene) -> SceneImage:
        """Return the file of a scene of shapes."""
        return self.encode(render_scene(scene, self.size_px))


CONDITIONS = {
    "plain": Condition(),
    "small": Condition(SMALL_PX),
    "large": Condition(LARGE_PX),
    "jpeg": Condition(encode=_jpeg_image),
    "blurred": Condition(encode=_blurred_image),
    "recoloured": Condition(encode=lambda image: png_image(image.convert("RGB", GREEN_BLUE_RED))),
    "stretched": Condition(encode=lambda image: png_image(image.resize(STRETCHED_SIZE_WH))),
    # at these sides the embedded models of shapes err
    "40px": Condition(40),
    "22px": Condition(22),
}
