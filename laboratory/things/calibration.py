"""Fits the calibrations of a model's scores on things and measures them; prints a table.

    python -m laboratory.things.calibration MATERIAL MODEL … [--scenes N]

The method is that of `laboratory/evaluation/calibration.py`: scenes under conditions, things of all
sizes, and small things in large images. There are more names than one request has labels, so
open-vocabulary detection asks for four of them. Half of the things in its scenes are others.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from export.scenes.scene import CANVAS_PX
from laboratory.evaluation.calibration import (
    LARGE_SIZE_WH,
    CalibrationSet,
    calibrate,
    calibration_parser,
)
from laboratory.evaluation.coco_scenes import Labelled, scaled
from laboratory.evaluation.conditions import Condition, png_image
from laboratory.things.accuracy import FIRST_SEED, unseen_scene
from laboratory.things.catalogue import INDEX_OF, THINGS, Thing
from laboratory.things.material import Material
from laboratory.things.rendering import (
    corner,
    render_background,
    render_things,
    thing_sprite,
)
from laboratory.things.sampling import sample_things
from laboratory.things.scene import Pose
from tasks.tiles.grid import Grid, PixelBox, tile_boxes

ASKED = ("lion", "tiger", "car", "taxi")  # look-alikes, two and two
KNOWN_SHARES = (0.12, 0.4)  # sizes of things, as shares of the side; training has 0.11 to 0.44
_SHARES = (0.04, 0.4)
_SIZED_PX = 768
_FIELDS_OF_A_SIDE = 2
_LARGE_FIELD_PX = 500
_LARGE_SIDES_PX = (48, 80, 140, 250, 0)  # 0: no things
_SEEDS_APART = 1_000_000
_ASKED_SEED = 20  # others have scenes of all sizes, look-alikes and adapters
_TRANSPARENT = 127  # up to this alpha, as in sampling


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and measure on scenes of things."""
    parser = calibration_parser("python -m laboratory.things.calibration", __doc__ or "")
    parser.add_argument("material", type=Path, metavar="MATERIAL")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parsed = parser.parse_args(arguments)
    material = Material(parsed.material)
    things = CalibrationSet(
        names=tuple(thing.name for thing in THINGS),
        tasks=("object_detection", "region_proposal"),
        conditions=("plain", "blurred", "small"),
        scenes=partial(scenes, material),
        scenes_of_all_sizes=partial(scenes_of_all_sizes, material),
        large_images=partial(large_images, material, size_wh=LARGE_SIZE_WH),
    )
    calibrate(parsed.models, [things, asked_set(material)], parsed.scenes)


def asked_set(material: Material) -> CalibrationSet:
    """Return the images of open-vocabulary detection."""
    asked = [THINGS[INDEX_OF[name]] for name in ASKED]
    drawn = (*asked * (len(THINGS) // len(ASKED)), *THINGS)
    return CalibrationSet(
        names=ASKED,
        tasks=("open_vocabulary_detection",),
        conditions=("plain", "blurred", "small"),
        scenes=partial(asked_scenes, material, drawn),
        scenes_of_all_sizes=partial(scenes_of_all_sizes, material, things=asked),
        large_images=partial(large_images, material, size_wh=LARGE_SIZE_WH, things=asked),
    )


def asked_scenes(
    material: Material,
    things: Sequence[Thing],
    conditions: Sequence[Condition],
    indices: Iterable[int],
) -> Iterator[Labelled]:
    """Yield images with one to four things under every condition; labels are the asked names."""
    first, *others = indices
    seed = _ASKED_SEED + first
    images = scenes_of_all_sizes(material, 1 + len(others), seed, things, KNOWN_SHARES)
    for image, objects in images:
        boxes = [(label, box) for label, box in objects if label in ASKED]
        picture = Image.open(io.BytesIO(image.data)).convert("RGB")
        for condition in conditions:
            resized = picture.resize((condition.size_px, condition.size_px))
            yield scaled(condition.encode(resized), boxes, _SIZED_PX)


def scenes(
    material: Material, conditions: Sequence[Condition], indices: Iterable[int]
) -> Iterator[Labelled]:
    """Yield unseen scenes under every condition."""
    for index in indices:
        scene = unseen_scene(material, index)
        boxes = [(placed.thing.name, placed.box_xyxy) for placed in scene.things]
        for condition in conditions:
            image = render_things(scene, material, condition.size_px)
            yield scaled(condition.encode(image), boxes)


def scenes_of_all_sizes(
    material: Material,
    num_scenes: int,
    seed: int = 0,
    things: Sequence[Thing] = THINGS,
    shares: tuple[float, float] = _SHARES,
) -> Iterator[Labelled]:
    """Yield images with one to four of `things`, each of another share of the side."""
    low, high = np.log(shares)
    fields = tile_boxes(Grid(_FIELDS_OF_A_SIDE, _FIELDS_OF_A_SIDE), (_SIZED_PX, _SIZED_PX), 0.0)
    for rng, image in _backgrounds(material, num_scenes, seed, (_SIZED_PX, _SIZED_PX)):
        chosen = rng.permutation(fields)[: rng.integers(1, len(fields) + 1)].tolist()
        sides = _SIZED_PX * np.exp(rng.uniform(low, high, len(chosen)))
        yield _with_things(rng, material, image, chosen, sides.tolist(), things)


def large_images(
    material: Material,
    num_of_a_kind: int,
    seed: int,
    size_wh: tuple[int, int],
    things: Sequence[Thing] = THINGS,
) -> Iterator[Labelled]:
    """Yield large images with small things of one size, and with none."""
    width, height = size_wh
    grid = Grid(height // _LARGE_FIELD_PX, width // _LARGE_FIELD_PX)
    fields = tile_boxes(grid, size_wh, 0.0)
    num_images = num_of_a_kind * len(_LARGE_SIDES_PX)
    for index, (rng, image) in enumerate(_backgrounds(material, num_images, seed, size_wh)):
        side_px = _LARGE_SIDES_PX[index % len(_LARGE_SIDES_PX)]
        shown = fields if side_px else []
        yield _with_things(rng, material, image, shown, [side_px] * len(shown), things)


def _backgrounds(
    material: Material, num: int, seed: int, size_wh: tuple[int, int]
) -> Iterator[tuple[Generator, Image.Image]]:
    """Yield the random numbers and the background of each image."""
    first = FIRST_SEED + _SEEDS_APART * (seed + 1)
    for index in range(first, first + num):
        background = sample_things(index, material, num_things=0, num_lines=0).background
        image = render_background(background, material, CANVAS_PX)
        yield default_rng((index, 44)), image.resize(size_wh)


def _with_things(
    rng: Generator,
    material: Material,
    image: Image.Image,
    fields: Sequence[PixelBox],
    sides_px: Sequence[float],
    things: Sequence[Thing],
) -> Labelled:
    """Draw one of `things`, upright, at a random place of each field."""
    objects = []
    for (left, top, right, bottom), side_px in zip(fields, sides_px, strict=True):
        thing = things[int(rng.integers(len(things)))]
        margin = side_px / 2 + 1
        center_x = float(rng.uniform(left + margin, right - margin))
        center_y = float(rng.uniform(top + margin, bottom - margin))
        pose = Pose((center_x, center_y), side_px, 0.0, False, 0, 1.0)
        sprite = thing_sprite(thing, pose, material, 1.0)
        x, y = corner(pose.center_xy, sprite, 1.0)
        image.paste(sprite, (x, y), sprite)
        ink = sprite.getchannel("A").point(lambda alpha: 255 * (alpha > _TRANSPARENT)).getbbox()
        assert ink is not None, thing.name  # a glyph has ink
        x1, y1, x2, y2 = ink
        objects.append((thing.name, (x + x1, y + y1, x + x2, y + y2)))
    return png_image(image), objects


if __name__ == "__main__":
    main()
