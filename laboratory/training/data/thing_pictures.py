"""Scenes of things as pictures."""

from functools import partial

import numpy as np
from numpy.random import Generator
from PIL import Image

from export.scenes.geometry import quad_xy
from export.scenes.scene import COLORS, SIZES
from laboratory.things import (
    Material,
    ThingScene,
    render_things,
    sample_things,
    thing_questions,
)
from laboratory.things.scene import PlacedThing
from laboratory.training.data.mask_samples import MASK_SIDE, Masks, sample_masks
from laboratory.training.data.pictures import FIRST_LINE, Part, Picture, thing_class


def thing_picture(scene: ThingScene, material: Material) -> Picture:
    """Return the picture of a scene."""
    parts = {index: thing_part(placed) for index, placed in enumerate(scene.things)}
    for index, line in enumerate(scene.lines):
        parts[FIRST_LINE + index] = Part(
            line.text, line.box_xyxy, line.quad_xy, characters=line.characters
        )
    render = partial(render_things, scene, material)
    is_light = scene.background.brightness == "light"
    return Picture(scene.seed, parts, is_light, thing_questions(scene), render)


def thing_part(placed: PlacedThing) -> Part:
    classes = {"thing": thing_class(placed.thing.name), "size": SIZES.index(placed.size)}
    if placed.color:
        classes["color"] = COLORS.index(placed.color)
    return Part(
        placed.name,
        placed.box_xyxy,
        quad_xy(placed.box_xyxy),
        classes,
        polygon_xy=lambda: placed.polygon_xy,
        mask=partial(_mask, placed),
    )


def thing_masks(material: Material, rng: Generator, num_masks: int) -> Masks:
    """Sample masks (B, 1, 64, 64): half of visible parts of things, half of shapes and blobs."""
    masks = list[Masks]()
    while len(masks) < num_masks // 2:
        scene = sample_things(int(rng.integers(2**62)), material, num_lines=0)
        masks += [_mask(placed) for placed in scene.things]
    of_things = np.stack(masks[: num_masks // 2])[:, None]
    others = sample_masks(rng, num_masks - len(of_things))
    return np.concatenate([of_things, others])


def _mask(placed: PlacedThing) -> Masks:
    image = Image.fromarray(placed.visible.astype(np.uint8) * 255)
    small = image.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / np.float32(255)
