"""Samples scenes of things and text: the same seed and material give the same scene.

Lines are placed first, then things, largest first. A thing that finds no place, or of which less
than half would be visible, is left out.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator, default_rng

from export.scenes.sampling import COLOR_RGB, GREY_RANGE
from export.scenes.scene import CANVAS_PX, COLORS, RGB, BoxXYXY, Brightness, Color, Size
from laboratory.things.catalogue import INDEX_OF, THINGS, Thing
from laboratory.things.lettering import place_lines
from laboratory.things.material import Material
from laboratory.things.rendering import corner, thing_sprite
from laboratory.things.scene import (
    MAX_THINGS,
    RESOLUTION_PX,
    SCALE,
    Pixels,
    PlacedThing,
    Pose,
    Texture,
    ThingBackground,
    ThingScene,
)
from laboratory.things.wording import MAX_LINES

_SIDES_PX: dict[Size, tuple[float, float]] = {"small": (22.0, 36.0), "large": (48.0, 84.0)}
_LARGE_SHARES = (0.6, 0.6, 0.6, 0.5, 0.5, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0)
_TEXTURES: tuple[Texture, ...] = ("plain", "gradient", "noisy", "texture", "photograph")
_AGAIN_SHARE = 0.2  # things like the one before
_LOOKALIKE_SHARE = 0.2  # things that look like the one before
_OVERLAP_SHARE = 0.35  # scenes whose things hide each other partly
_MAX_OVERLAP = 0.3  # share of the smaller box
_MAX_OUTSIDE = 0.2  # share of the side
_MIN_VISIBLE = 0.5
_MIN_DISTANCE_X_PX = 6.0
_GAP_PX = 3.0
_MAX_ATTEMPTS = 30
_TINT = 18
_ANY_LINES_SHARE = 0.45


@dataclass(frozen=True, slots=True)
class _Sprite:
    """A placed glyph before it is known what hides it."""

    thing: Thing
    color: Color | None
    size: Size
    pose: Pose
    opaque: Pixels  # (H, W) of the whole canvas
    box_xyxy: BoxXYXY


def sample_things(
    seed: int,
    material: Material,
    num_things: int | None = None,
    num_lines: int | None = None,
    has_held_out_fonts: bool = False,
) -> ThingScene:
    """Return a seed's scene; by default 1 to 12 things, mostly few, and lines in half of them."""
    rng = default_rng((seed, 41))
    drawn_things = min(MAX_THINGS, 1 + int(rng.geometric(0.3) - 1))
    drawn_lines = int(rng.integers(1, MAX_LINES + 1)) if rng.random() < _ANY_LINES_SHARE else 0
    num_things = drawn_things if num_things is None else num_things
    num_lines = drawn_lines if num_lines is None else num_lines
    brightness: Brightness = "dark" if rng.random() < 0.5 else "light"
    background = ThingBackground(
        brightness,
        _TEXTURES[int(rng.integers(len(_TEXTURES)))],
        _tinted_grey(rng, brightness),
        _tinted_grey(rng, brightness),
        int(rng.integers(2**32)),
    )
    is_light = brightness == "light"
    panel, lines = place_lines(rng, material, num_lines, is_light, has_held_out_fonts)
    taken = [panel.box_xyxy] if panel else [line.box_xyxy for line in lines]
    sprites = place_things(rng, material, num_things, taken)
    return ThingScene(seed, background, panel, visible_things(sprites), lines)


def unrendered_scene(seed: int) -> ThingScene:
    """Return things in any places, without text: enough for the wording of questions."""
    rng = default_rng((seed, 42))
    placed = []
    thing = _any_thing(rng)
    for layer in range(int(rng.integers(1, 6))):
        color = COLORS[int(rng.integers(len(COLORS)))] if thing.color else None
        size: Size = "large" if rng.random() < 0.5 else "small"
        left, top = (rng.random(2) * CANVAS_PX / 2).tolist()
        visible = np.ones((8, 8), bool)
        pose = Pose((left, top), 8.0, 0.0, False, 0, 1.0)
        box = (left, top, left + 8 / SCALE, top + 8 / SCALE)
        placed.append(PlacedThing(thing, color, size, pose, layer, visible, box))
        thing = _next_thing(rng, thing)
    brightness: Brightness = "dark" if rng.random() < 0.5 else "light"
    background = ThingBackground(brightness, "plain", (0, 0, 0), (0, 0, 0), 0)
    things = sorted(placed, key=lambda each: _middle_x(each.box_xyxy))
    return ThingScene(seed, background, None, tuple(things), ())


def _tinted_grey(rng: Generator, brightness: Brightness) -> RGB:
    grey = int(rng.integers(*GREY_RANGE[brightness]))
    red, green, blue = (grey + rng.integers(-_TINT, _TINT + 1, 3)).clip(0, 255).tolist()
    return red, green, blue


def place_things(
    rng: Generator, material: Material, num: int, taken: Sequence[BoxXYXY]
) -> list[_Sprite]:
    """Return the things that find a place, in the order of drawing."""
    max_overlap = _MAX_OVERLAP if rng.random() < _OVERLAP_SHARE else 0.0
    chosen = []
    thing = _any_thing(rng)
    for _ in range(num):
        size: Size = "large" if rng.random() < _LARGE_SHARES[num] else "small"
        chosen.append((thing, size, float(rng.uniform(*_SIDES_PX[size]))))
        thing = _next_thing(rng, thing)
    sprites: list[_Sprite] = []
    for thing, size, side_px in sorted(chosen, key=lambda each: -each[2]):
        placed = place_thing(rng, material, (thing, size, side_px), sprites, taken, max_overlap)
        if placed is not None:
            sprites.append(placed)
    return sprites


def _any_thing(rng: Generator) -> Thing:
    return THINGS[int(rng.integers(len(THINGS)))]


def _next_thing(rng: Generator, thing: Thing) -> Thing:
    kind = rng.random()
    if kind < _AGAIN_SHARE:
        return thing
    if kind < _AGAIN_SHARE + _LOOKALIKE_SHARE and thing.lookalikes:
        name = thing.lookalikes[int(rng.integers(len(thing.lookalikes)))]
        return THINGS[INDEX_OF[name]]
    return _any_thing(rng)


def place_thing(
    rng: Generator,
    material: Material,
    chosen: tuple[Thing, Size, float],
    sprites: Sequence[_Sprite],
    taken: Sequence[BoxXYXY],
    max_overlap: float,
) -> _Sprite | None:
    thing, size, side_px = chosen
    color = COLORS[int(rng.integers(len(COLORS)))] if thing.color else None
    shift = _hue(color) - _hue(thing.color) if color and thing.color else 0
    is_turned = rng.random() < 0.5 and "flag" not in thing.kinds
    pose = Pose(
        (CANVAS_PX / 2, CANVAS_PX / 2),
        side_px,
        float(rng.uniform(-30, 30)) if is_turned else 0.0,
        bool(rng.random() < 0.5) and "flag" not in thing.kinds,
        shift if color else int(rng.integers(-3, 4)),
        float(rng.uniform(0.8, 1.1)),
    )
    sprite = thing_sprite(thing, pose, material, SCALE)
    opaque = np.asarray(sprite.getchannel("A")) > 127
    margin = (0.5 - (_MAX_OUTSIDE if rng.random() < 0.1 else 0.0)) * side_px
    for _ in range(_MAX_ATTEMPTS):
        x, y = (margin + (CANVAS_PX - 2 * margin) * rng.random(2)).tolist()
        left, top = corner((x, y), sprite, SCALE)
        box = _box_on_canvas(opaque, left, top)
        if any(
            abs(_middle_x(box) - _middle_x(each.box_xyxy)) < _MIN_DISTANCE_X_PX for each in sprites
        ):
            continue
        if any(_overlap(box, each, _GAP_PX) > 0 for each in taken):
            continue
        if any(_overlap(box, each.box_xyxy, 0.0) > max_overlap for each in sprites):
            continue
        placed = replace(pose, center_xy=(x, y))
        return _Sprite(thing, color, size, placed, _on_canvas(opaque, left, top), box)
    return None


def _hue(color: Color) -> int:
    red, green, blue = (value / 255 for value in COLOR_RGB[color])
    return round(colorsys.rgb_to_hsv(red, green, blue)[0] * 256)


def _on_canvas(opaque: Pixels, left: int, top: int) -> Pixels:
    canvas = np.zeros((RESOLUTION_PX, RESOLUTION_PX), bool)
    part = opaque[max(0, -top) : RESOLUTION_PX - top, max(0, -left) : RESOLUTION_PX - left]
    top, left = max(0, top), max(0, left)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def _tight(pixels: Pixels) -> tuple[int, int, int, int]:
    rows = np.flatnonzero(pixels.any(axis=1))
    columns = np.flatnonzero(pixels.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _box_on_canvas(opaque: Pixels, left: int, top: int) -> BoxXYXY:
    x1, y1, x2, y2 = _tight(opaque)
    edges = np.clip((left + x1, top + y1, left + x2, top + y2), 0, RESOLUTION_PX) / SCALE
    x1, y1, x2, y2 = edges.tolist()
    return x1, y1, x2, y2


def _middle_x(box: BoxXYXY) -> float:
    return (box[0] + box[2]) / 2


def _overlap(first: BoxXYXY, second: BoxXYXY, gap_px: float) -> float:
    """Return the share of the smaller box that lies in the other, grown by a gap."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + gap_px
    height = min(first[3], second[3]) - max(first[1], second[1]) + gap_px
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / max(1.0, min(areas))


def visible_things(sprites: Sequence[_Sprite]) -> tuple[PlacedThing, ...]:
    """Return the things left to right, without those that the ones above hide too much."""
    hidden = np.zeros((RESOLUTION_PX, RESOLUTION_PX), bool)
    placed = []
    for layer in reversed(range(len(sprites))):
        sprite = sprites[layer]
        visible = sprite.opaque & ~hidden
        if visible.sum() < _MIN_VISIBLE * sprite.opaque.sum():
            continue
        hidden |= sprite.opaque
        left, top, right, bottom = _tight(visible)
        box = (left / SCALE, top / SCALE, right / SCALE, bottom / SCALE)
        part = visible[top:bottom, left:right]
        placed.append(
            PlacedThing(sprite.thing, sprite.color, sprite.size, sprite.pose, layer, part, box)
        )
    return tuple(sorted(placed, key=lambda each: _middle_x(each.box_xyxy)))
