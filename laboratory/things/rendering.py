"""Renders a scene of things as an RGB image of any size."""

from math import cos, pi, sin

import numpy as np
from numpy.random import default_rng
from PIL import Image, ImageDraw

from export.scenes.scene import CANVAS_PX
from laboratory.things.catalogue import Thing
from laboratory.things.material import Material
from laboratory.things.scene import Pose, TextLine, ThingBackground, ThingScene

_NOISE_AMPLITUDE = 14
_PHOTOGRAPH_SHARE = 0.35  # a photograph's contrast
_PATCH_PX = 160  # smallest part of a photograph
_MIN_SATURATION = 60  # greys, below it, keep their colour


def render_things(scene: ThingScene, material: Material, size_px: int = CANVAS_PX) -> Image.Image:
    """Return the scene as a square RGB image."""
    scale = size_px / CANVAS_PX
    image = render_background(scene.background, material, size_px)
    if scene.panel is not None:
        left, top, right, bottom = (round(value * scale) for value in scene.panel.box_xyxy)
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=scene.panel.rgb)
    for placed in sorted(scene.things, key=lambda placed: placed.layer):
        sprite = thing_sprite(placed.thing, placed.pose, material, scale)
        image.paste(sprite, corner(placed.pose.center_xy, sprite, scale), sprite)
    for line in scene.lines:
        ink = line_ink(line, material, scale)
        image.paste(line.rgb, corner(line.center_xy, ink, scale), ink)
    return image


def corner(center_xy: tuple[float, float], sprite: Image.Image, scale: float) -> tuple[int, int]:
    """Return where the top left corner of a sprite lies."""
    return (
        round(center_xy[0] * scale - sprite.width / 2),
        round(center_xy[1] * scale - sprite.height / 2),
    )


def thing_sprite(thing: Thing, pose: Pose, material: Material, scale: float) -> Image.Image:
    """Return the glyph as RGBA, recoloured, mirrored, scaled and turned."""
    glyph = material.emoji(thing.emoji)
    factor = pose.side_px * scale / max(glyph.size)
    width, height = (max(1, round(side * factor)) for side in glyph.size)
    # Premultiplied, so that transparent pixels do not bleed into the edge.
    sprite = glyph.convert("RGBa").resize(
        (width, height), Image.Resampling.BOX if factor < 0.5 else Image.Resampling.BILINEAR
    )
    if pose.is_mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if pose.angle_deg:
        sprite = sprite.rotate(pose.angle_deg, Image.Resampling.BILINEAR, expand=True)
    return recolored(sprite.convert("RGBA"), pose)


def recolored(sprite: Image.Image, pose: Pose) -> Image.Image:
    if not pose.hue_shift and pose.brightness_factor == 1.0:
        return sprite
    alpha = sprite.getchannel("A")
    pixels = np.array(sprite.convert("RGB").convert("HSV"))
    is_colored = pixels[..., 1] >= _MIN_SATURATION
    shifted = (pixels[..., 0].astype(int) + pose.hue_shift) % 256
    pixels[..., 0] = np.where(is_colored, shifted, pixels[..., 0])
    pixels[..., 2] = (pixels[..., 2] * pose.brightness_factor).clip(0, 255)
    colored = Image.fromarray(pixels, "HSV").convert("RGB")
    colored.putalpha(alpha)
    return colored


def ink_of(material: Material, file: str, size_px: int, text: str) -> Image.Image:
    """Return the coverage of a text, cropped to its ink."""
    font = material.font(file, size_px)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    canvas = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), text, fill=255, font=font, anchor="ls")
    return canvas.crop(canvas.getbbox())


def line_ink(line: TextLine, material: Material, scale: float) -> Image.Image:
    """Return the ink, stretched a little to the line's size because hinting changes widths."""
    ink = ink_of(material, line.font_file, max(4, round(line.font_size_px * scale)), line.text)
    width, height = (max(1, round(side * scale)) for side in line.size_wh)
    if ink.size != (width, height):
        ink = ink.resize((width, height))
    if not line.angle_deg:
        return ink
    return ink.rotate(line.angle_deg, Image.Resampling.BICUBIC, expand=True)


def render_background(background: ThingBackground, material: Material, size_px: int) -> Image.Image:
    """Return a colour, or a palette of two colours over a pattern at canvas size, resized."""
    start = np.array(background.start_rgb, np.float32)
    if background.texture == "plain":
        return Image.new("RGB", (size_px, size_px), background.start_rgb)
    rng = default_rng(background.seed)
    end = np.array(background.end_rgb, np.float32)
    if background.texture == "noisy":
        noise = rng.integers(-_NOISE_AMPLITUDE, _NOISE_AMPLITUDE + 1, (CANVAS_PX, CANVAS_PX, 3))
        pixels = start + noise
    elif background.texture == "photograph":
        photographs = material.photographs
        whole = photographs[int(rng.integers(len(photographs)))]
        side = int(rng.integers(_PATCH_PX, min(whole.size) + 1))
        left = int(rng.integers(whole.width - side + 1))
        top = int(rng.integers(whole.height - side + 1))
        box = (left, top, left + side, top + side)
        part = np.asarray(whole.resize((CANVAS_PX, CANVAS_PX), box=box), np.float32)
        pixels = start + _PHOTOGRAPH_SHARE * (part - part.mean(axis=(0, 1)))
    else:
        pixels = start + pattern(background, rng)[..., None] * (end - start)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if size_px == CANVAS_PX:
        return image
    return image.resize((size_px, size_px), Image.Resampling.BILINEAR)


def pattern(background: ThingBackground, rng: np.random.Generator) -> np.ndarray:
    """Return shares (H, W) of the end colour: a gradient, or crossing waves."""
    angle = rng.uniform(0, 2 * pi)
    axis = np.linspace(-0.5, 0.5, CANVAS_PX, dtype=np.float32)
    across = cos(angle) * axis[None, :] + sin(angle) * axis[:, None]
    if background.texture == "gradient":
        return (across / (abs(cos(angle)) + abs(sin(angle))) + 0.5).clip(0, 1)
    along = sin(angle) * axis[None, :] - cos(angle) * axis[:, None]
    waves = np.sin(across * rng.uniform(10, 120)) + np.sin(along * rng.uniform(10, 120))
    return (waves / 4 + 0.5) if rng.random() < 0.5 else (waves > 0).astype(np.float32)
