"""Images of rendered scenes as the bytes that a client sends."""

from PIL import Image

from export.scenes import render_scene, sample_scene
from tests.support.image_files import encoded as encoded


def scene_image(seed: int = 3, size_wh: tuple[int, int] = (320, 240)) -> Image.Image:
    return render_scene(sample_scene(seed), 384).resize(size_wh)


def scene_png(seed: int = 3, size_wh: tuple[int, int] = (320, 240)) -> bytes:
    return encoded(scene_image(seed, size_wh))
