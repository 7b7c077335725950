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


Condition = Callable[[Scene], SceneImage]


def png_image(image: Image.Image) -> SceneImage:
    """Return the image as PNG at the lightest compression, which takes a quarter of the time."""
    return _encoded(image, "PNG", compress_level=1)


def _encoded(image: Image.Image, image_format: str, **options: int) -> SceneImage:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return SceneImage(file.getvalue(), f"image/{image_format.lower()}", image.size)


CONDITIONS: dict[str, Condition] = {
    "plain": lambda scene: png_image(render_scene(scene, PLAIN_PX)),
    "small": lambda scene: png_image(render_scene(scene, SMALL_PX)),
    "large": lambda scene: png_image(render_scene(scene, LARGE_PX)),
    "jpeg": lambda scene: _encoded(render_scene(scene, PLAIN_PX), "JPEG", quality=JPEG_QUALITY),
    "blurred": lambda scene: png_image(
        render_scene(scene, PLAIN_PX).filter(ImageFilter.GaussianBlur(BLUR_OF_SIDE * PLAIN_PX))
    ),
    "recoloured": lambda scene: png_image(
        render_scene(scene, PLAIN_PX).convert("RGB", GREEN_BLUE_RED)
    ),
    "stretched": lambda scene: png_image(render_scene(scene, PLAIN_PX).resize(STRETCHED_SIZE_WH)),
    # at these sides the embedded models err
    "40px": lambda scene: png_image(render_scene(scene, 40)),
    "22px": lambda scene: png_image(render_scene(scene, 22)),
}
