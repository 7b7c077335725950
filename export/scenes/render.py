"""Renders a scene as an RGB image of any size.

Shapes are antialiased: their masks are drawn `SUPERSAMPLING` times as large and reduced.
"""

from math import ceil, cos, floor, sin

import numpy as np
from numpy.random import default_rng
from PIL import Image, ImageDraw

from export.scenes.fonts import ink_mask
from export.scenes.geometry import Ring, outline_xy, ring_box_xyxy
from export.scenes.scene import CANVAS_PX, RGB, Background, Scene

SUPERSAMPLING = 4
_INK_RGB: dict[str, RGB] = {"dark": (255, 255, 255), "light": (0, 0, 0)}


def render_scene(scene: Scene, size_px: int = CANVAS_PX) -> Image.Image:
    """Return the scene as a square RGB image."""
    image = render_background(scene.background, size_px)
    scale = size_px / CANVAS_PX
    for scene_object in scene.objects:
        ring = tuple((x * scale, y * scale) for x, y in outline_xy(scene_object))
        draw_ring(image, ring, scene_object.rgb)
    if scene.word is not None:
        # The ink is stretched a little to the word's box, because hinting changes widths with the
        # size.
        left, top, right, bottom = (round(value * scale) for value in scene.word.box_xyxy)
        ink = ink_mask(scene.word.text, scene.word.font_face, scene.word.font_size_px * scale)
        ink_rgb = _INK_RGB[scene.background.brightness]
        image.paste(ink_rgb, (left, top), ink.resize((right - left, bottom - top)))
    return image


def render_background(background: Background, size_px: int) -> Image.Image:
    """Return a plain colour, or 0 to 255 levels at canvas size, coloured and resized."""
    if background.texture == "plain":
        return Image.new("RGB", (size_px, size_px), background.start_rgb)
    if background.texture == "gradient":
        palette = _palette(background.start_rgb, background.end_rgb)
        across = cos(background.angle_rad)
        down = sin(background.angle_rad)
        axis = np.linspace(-127.5, 127.5, CANVAS_PX, dtype=np.float32) / (abs(across) + abs(down))
        grid = (across * axis + 127.5)[None, :] + (down * axis)[:, None]  # (H, W)
        grey = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
        image = grey.convert("RGB").point(palette)
    else:
        levels = default_rng(background.noise_seed).bytes(CANVAS_PX * CANVAS_PX * 3)
        low = tuple(value - background.noise_amplitude for value in background.start_rgb)
        high = tuple(value + background.noise_amplitude for value in background.start_rgb)
        noise = Image.frombytes("RGB", (CANVAS_PX, CANVAS_PX), levels)
        image = noise.point(_palette(low, high))
    if size_px == CANVAS_PX:
        return image
    return image.resize((size_px, size_px), Image.Resampling.BILINEAR)


def _palette(start_rgb: tuple[int, ...], end_rgb: tuple[int, ...]) -> list[int]:
    """Return 256 values from start to end for each channel in turn, the format of `Image.point`."""
    channels = [np.linspace(start, end, 256) for start, end in zip(start_rgb, end_rgb, strict=True)]
    return [int(value) for value in np.concatenate(channels).clip(0, 255)]


def draw_ring(image: Image.Image, ring: Ring, rgb: RGB) -> None:
    """Fill a polygon, given in pixels of the image, with a colour.

    Pillow fills a pixel if its index is inside the polygon; shifting by half a fine pixel tests its
    centre instead.
    """
    box = ring_box_xyxy(ring)
    left, top = map(floor, box[:2])
    right, bottom = map(ceil, box[2:])
    fine = Image.new("L", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    points = [((x - left) * SUPERSAMPLING - 0.5, (y - top) * SUPERSAMPLING - 0.5) for x, y in ring]
    ImageDraw.Draw(fine).polygon(points, fill=255)
    image.paste(rgb, (left, top), fine.reduce(SUPERSAMPLING))
