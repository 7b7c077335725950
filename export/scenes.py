"""Rendered scenes of coloured shapes and at most one word, on which the embedded checkpoints are
trained.

The same seed gives the same scene: a background with objects, and an optional word. Every length is
in pixels of a square canvas of `CANVAS_PX`; images are scaled from there. y grows downwards. Points
run clockwise as seen, from the top or the top left corner. Shapes are antialiased: their masks are
drawn `SUPERSAMPLING` times as large and reduced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, cos, floor, inf, pi, sin
from pathlib import Path
from string import ascii_uppercase, digits
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont

Color = Literal["red", "green", "blue", "yellow", "purple", "orange"]
Shape = Literal["circle", "square", "triangle", "star"]
Size = Literal["small", "large"]
Brightness = Literal["dark", "light"]
Texture = Literal["plain", "gradient", "noisy"]
FontFace = Literal["regular", "bold", "pillow"]
RGB = tuple[int, int, int]
BoxXYXY = tuple[float, float, float, float]

COLORS: tuple[Color, ...] = get_args(Color)
SHAPES: tuple[Shape, ...] = get_args(Shape)
CANVAS_PX = 192


@dataclass(frozen=True, slots=True)
class Background:
    """A plain colour, a gradient along `angle_rad`, or a colour with ± `noise_amplitude`."""

    brightness: Brightness
    texture: Texture
    start_rgb: RGB
    end_rgb: RGB
    angle_rad: float
    noise_amplitude: int
    noise_seed: int


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One coloured shape; `radius_px` is half its width (a star's: from the centre to a tip)."""

    color: Color
    shape: Shape
    size: Size
    rgb: RGB
    center_xy: tuple[float, float]
    radius_px: float

    @property
    def name(self) -> str:
        """`red circle`."""
        return f"{self.color} {self.shape}"

    @property
    def description(self) -> str:
        """`small red circle`."""
        return f"{self.size} {self.name}"


@dataclass(frozen=True, slots=True)
class Word:
    """Upright text; `box_xyxy` is the box of its ink."""

    text: str
    font_face: FontFace
    font_size_px: int
    box_xyxy: BoxXYXY


@dataclass(frozen=True, slots=True)
class Scene:
    """A background with objects, ordered left to right by their centres, and an optional word."""

    seed: int
    background: Background
    objects: tuple[SceneObject, ...]
    word: Word | None


_FONT_FILES = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}


@lru_cache(maxsize=128)
def load_font(font_face: FontFace, font_size_px: float) -> ImageFont.FreeTypeFont:
    if font_face != "pillow":
        file = Path(__file__).parent / "dejavu" / _FONT_FILES[font_face]
        return ImageFont.truetype(file, font_size_px)
    font = ImageFont.load_default(font_size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)  # of a Pillow built with FreeType
    return font


def ink_mask(text: str, font_face: FontFace, font_size_px: float) -> Image.Image:
    """Return the text's coverage (0 to 255), cropped to its ink: the font's box is wider."""
    font = load_font(font_face, font_size_px)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    canvas = Image.new("L", (ceil(right - left), ceil(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, anchor="ls")
    return canvas.crop(canvas.getbbox())


Point = tuple[float, float]
Ring = tuple[Point, ...]

STAR_INNER_RADIUS = 0.45
NUM_CIRCLE_POINTS = 72


def _points_around(radii: tuple[float, ...]) -> Ring:
    points = []
    for index, radius in enumerate(radii):
        angle = 2 * pi / len(radii) * index
        points.append((radius * sin(angle), -radius * cos(angle)))
    return tuple(points)


_UNIT_RINGS: dict[Shape, Ring] = {
    "circle": _points_around((1.0,) * NUM_CIRCLE_POINTS),
    "square": ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    "triangle": ((0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
    "star": _points_around((1.0, STAR_INNER_RADIUS) * 5),
}


def outline_xy(scene_object: SceneObject) -> Ring:
    """Return the outline as it is drawn."""
    center_x, center_y = scene_object.center_xy
    radius = scene_object.radius_px
    unit_ring = _UNIT_RINGS[scene_object.shape]
    return tuple((center_x + radius * x, center_y + radius * y) for x, y in unit_ring)


def box_xyxy(scene_object: SceneObject) -> BoxXYXY:
    return ring_box_xyxy(outline_xy(scene_object))


def ring_box_xyxy(ring: Ring) -> BoxXYXY:
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def are_apart(first: BoxXYXY, second: BoxXYXY, gap_px: float) -> bool:
    """Return True if a strip of at least `gap_px` separates the two boxes."""
    horizontal = max(second[0] - first[2], first[0] - second[2])
    vertical = max(second[1] - first[3], first[1] - second[3])
    return max(horizontal, vertical) >= gap_px


MIN_GAP_PX = 4.0
MIN_CENTER_DISTANCE_X_PX = 9.0
EDGE_PX = 2
COLOR_SPREAD = 14
TINT_SPREAD = 5
MAX_OBJECTS = 4
_MAX_ATTEMPTS = 30

COLOR_RGB: dict[Color, RGB] = {
    "red": (218, 38, 38),
    "green": (38, 165, 60),
    "blue": (38, 78, 222),
    "yellow": (240, 218, 38),
    "purple": (150, 45, 180),
    "orange": (245, 138, 25),
}
RADIUS_RANGE_PX: dict[Size, tuple[float, float]] = {"small": (11.0, 16.0), "large": (23.0, 32.0)}
GREY_RANGE: dict[Brightness, tuple[int, int]] = {"dark": (15, 70), "light": (190, 245)}
_TEXTURES: tuple[Texture, ...] = get_args(Texture)
_FONT_FACES: tuple[FontFace, ...] = get_args(FontFace)

T = TypeVar("T")


def sample_scene(seed: int, num_objects: int | None = None) -> Scene:
    """Return a seed's scene; by default 1 to 4 objects, and a word in half of all scenes."""
    rng = default_rng(seed)
    sampled_num_objects = int(rng.integers(1, MAX_OBJECTS + 1))
    has_word = bool(rng.random() < 0.5)
    num_objects = sampled_num_objects if num_objects is None else num_objects
    brightness: Brightness = "dark" if rng.random() < 0.5 else "light"
    background = Background(
        brightness=brightness,
        texture=_choice(rng, _TEXTURES),
        start_rgb=_tinted_grey(rng, brightness),
        end_rgb=_tinted_grey(rng, brightness),
        angle_rad=float(rng.uniform(0, 2 * pi)),
        noise_amplitude=int(rng.integers(4, 15)),
        noise_seed=int(rng.integers(2**32)),
    )
    while (layout := sample_layout(rng, num_objects, has_word)) is None:
        pass  # too crowded: sample another layout
    objects, word = layout
    return Scene(seed, background, objects, word)


def _tinted_grey(rng: Generator, brightness: Brightness) -> RGB:
    lowest, highest = GREY_RANGE[brightness]
    return _near(rng, (int(rng.integers(lowest, highest + 1)),) * 3, TINT_SPREAD)


def sample_layout(
    rng: Generator, num_objects: int, has_word: bool
) -> tuple[tuple[SceneObject, ...], Word | None] | None:
    """Place the word, then the objects, largest first; return None if an object does not fit."""
    word = sample_word(rng) if has_word else None
    taken = [] if word is None else [word.box_xyxy]
    sampled = []  # distinct pairs of colour and shape, all at the origin
    for pair in rng.choice(len(COLORS) * len(SHAPES), num_objects, replace=False):
        color = COLORS[pair // len(SHAPES)]
        shape = SHAPES[pair % len(SHAPES)]
        size: Size = "small" if rng.random() < 0.5 else "large"
        radius_px = float(rng.uniform(*RADIUS_RANGE_PX[size]))
        rgb = _near(rng, COLOR_RGB[color], COLOR_SPREAD)
        sampled.append(SceneObject(color, shape, size, rgb, (0.0, 0.0), radius_px))
    objects: list[SceneObject] = []
    for unplaced in sorted(sampled, key=lambda drawn: -drawn.radius_px):
        placed = _place(rng, unplaced, objects, taken)
        if placed is None:
            return None
        objects.append(placed)
        taken.append(box_xyxy(placed))
    return tuple(sorted(objects, key=lambda placed: placed.center_xy[0])), word


def sample_word(rng: Generator) -> Word:
    is_number = rng.random() < 0.3
    alphabet, max_characters = (digits, 4) if is_number else (ascii_uppercase, 5)
    text = "".join(_choice(rng, alphabet) for _ in range(rng.integers(2, max_characters + 1)))
    font_face = _choice(rng, _FONT_FACES)
    font_size_px = int(rng.integers(20, 31))
    width, height = ink_mask(text, font_face, font_size_px).size
    left = float(rng.integers(EDGE_PX, CANVAS_PX - EDGE_PX - width + 1))
    top = float(rng.integers(EDGE_PX, CANVAS_PX - EDGE_PX - height + 1))
    return Word(text, font_face, font_size_px, (left, top, left + width, top + height))


def _place(
    rng: Generator, unplaced: SceneObject, objects: Sequence[SceneObject], taken: Sequence[BoxXYXY]
) -> SceneObject | None:
    margin = EDGE_PX + unplaced.radius_px
    for _ in range(_MAX_ATTEMPTS):
        x, y = (margin + (CANVAS_PX - 2 * margin) * rng.random(2)).tolist()
        placed = replace(unplaced, center_xy=(x, y))
        distances = [abs(x - other.center_xy[0]) for other in objects]
        is_in_line = min(distances, default=inf) < MIN_CENTER_DISTANCE_X_PX
        if not is_in_line and all(are_apart(box_xyxy(placed), box, MIN_GAP_PX) for box in taken):
            return placed
    return None


def _near(rng: Generator, rgb: RGB, spread: int) -> RGB:
    red, green, blue = (rgb + rng.integers(-spread, spread + 1, 3)).clip(0, 255).tolist()
    return red, green, blue


def _choice(rng: Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]


SUPERSAMPLING = 4
_INK_RGB: dict[str, RGB] = {"dark": (255, 255, 255), "light": (0, 0, 0)}


def render_scene(scene: Scene, size_px: int = CANVAS_PX) -> Image.Image:
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
