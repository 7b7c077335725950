"""Samples scenes: the same seed gives the same scene.

Defines the allowed contents of a scene and their placement.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from string import ascii_uppercase, digits
from typing import TypeVar, get_args

from numpy.random import Generator, default_rng

from export.scenes.fonts import ink_mask
from export.scenes.geometry import are_apart, box_xyxy
from export.scenes.scene import (
    CANVAS_PX,
    COLORS,
    RGB,
    SHAPES,
    Background,
    BoxXYXY,
    Brightness,
    Color,
    FontFace,
    Scene,
    SceneObject,
    Size,
    Texture,
    Word,
)

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


def sample_scene(seed: int, num_objects: int | None = None, has_word: bool | None = None) -> Scene:
    """Return a seed's scene; by default 1 to 4 objects, and a word in half of all scenes."""
    if num_objects is not None and not 0 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"num_objects is {num_objects}; allowed: 0 to {MAX_OBJECTS}")
    rng = default_rng(seed)
    drawn_num_objects = int(rng.integers(1, MAX_OBJECTS + 1))
    drawn_has_word = bool(rng.random() < 0.5)
    num_objects = drawn_num_objects if num_objects is None else num_objects
    has_word = drawn_has_word if has_word is None else has_word
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
        is_in_line = any(
            abs(x - other.center_xy[0]) < MIN_CENTER_DISTANCE_X_PX for other in objects
        )
        if not is_in_line and all(are_apart(box_xyxy(placed), box, MIN_GAP_PX) for box in taken):
            return placed
    return None


def _near(rng: Generator, rgb: RGB, spread: int) -> RGB:
    offsets = rng.integers(-spread, spread + 1, 3).tolist()
    red, green, blue = (
        min(255, max(0, channel + offset)) for channel, offset in zip(rgb, offsets, strict=True)
    )
    return red, green, blue


def _choice(rng: Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]
