"""Writes labelled scenes on which an embedded model is tuned, the examples of docs/fine-tuning.md.

    python -m laboratory.tuning colours FOLDER
    python -m laboratory.tuning new-shape FOLDER

`colours`: 200 scenes of shapes, labelled by colour and shape. `new-shape`: FOLDER/train,
FOLDER/test and FOLDER/known, 400, 200 and 200 scenes labelled by shape; in the first two every
third shape is an X, which no embedded model has seen.

Boxes lie on the grid that the embedded models write: their other locations are untrained.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import default_rng

from export.scenes import (
    CANVAS_PX,
    SHAPES,
    Ring,
    SceneObject,
    box_xyxy,
    draw_ring,
    render_scene,
    sample_scene,
)
from laboratory.evaluation.scenes import PLAIN_PX, Labelled, encoded, scaled, write_coco
from tasks.florence2.grammar import NUM_BINS

X = "X"
_X_SHARE = 1 / 3
_ARM = 0.3  # length of a notch and width of an end; the box reaches from -1 to 1
_UPPER_NOTCH = ((-1 + _ARM, -1.0), (0.0, -_ARM), (1 - _ARM, -1.0))
_RIGHT_NOTCH = ((1.0, -1 + _ARM), (_ARM, 0.0), (1.0, 1 - _ARM))
_UNIT_X = (
    *_UPPER_NOTCH,
    *_RIGHT_NOTCH,
    *((-x, -y) for x, y in _UPPER_NOTCH),
    *((-x, -y) for x, y in _RIGHT_NOTCH),
)
_FIRST_SEED = 600_000_000  # no training or evaluation of embedded models has it
_SEEDS_APART = 1000
_STEP_BINS = 8


def main(arguments: list[str]) -> None:
    """Write the scenes of an example."""
    match arguments:
        case ["colours", folder]:
            write_named_shapes(Path(folder), 200)
        case ["new-shape", folder]:
            write_new_shape(Path(folder), 200)
        case _:
            sys.exit(__doc__)


def write_named_shapes(folder: Path, num_scenes: int) -> None:
    """Write scenes with labels like `blue star`."""
    scenes = []
    names = dict[str, None]()  # a set with an order
    for seed in range(_FIRST_SEED, _FIRST_SEED + num_scenes):
        scene = sample_scene(seed)
        boxes = [(drawn.name, box_xyxy(drawn)) for drawn in scene.objects]
        image = encoded(render_scene(scene, PLAIN_PX))
        scenes.append(_on_grid(scaled(image, boxes)))
        names |= dict.fromkeys(drawn.name for drawn in scene.objects)
    write_coco(folder, scenes, list(names))


def write_new_shape(folder: Path, num_scenes: int) -> None:
    """Write `test` and `known` with `num_scenes` each, and `train` with twice as many."""
    first_seed = _FIRST_SEED
    for name, num, share in (
        ("train", 2 * num_scenes, _X_SHARE),
        ("test", num_scenes, _X_SHARE),
        ("known", num_scenes, 0.0),
    ):
        scenes = _scenes_with_x(range(first_seed, first_seed + num), share)
        write_coco(folder / name, scenes, (*SHAPES, X))
        first_seed += _SEEDS_APART


def _scenes_with_x(seeds: range, share: float) -> Iterator[Labelled]:
    """Yield scenes in which a `share` of the shapes is drawn as an X."""
    for seed in seeds:
        scene = sample_scene(seed)
        rng = default_rng((seed, 6))
        x_shapes = [drawn for drawn in scene.objects if rng.random() < share]
        shapes = tuple(drawn for drawn in scene.objects if drawn not in x_shapes)
        image = render_scene(replace(scene, objects=shapes), PLAIN_PX)
        for drawn in x_shapes:
            draw_ring(image, _x_ring(drawn, PLAIN_PX / CANVAS_PX), drawn.rgb)
        boxes = []
        for drawn in scene.objects:
            if drawn in x_shapes:
                square = replace(drawn, shape="square")  # an X has the box of a square
                boxes.append((X, box_xyxy(square)))
            else:
                boxes.append((drawn.shape, box_xyxy(drawn)))
        yield _on_grid(scaled(encoded(image), boxes))


def _x_ring(drawn: SceneObject, scale: float) -> Ring:
    """Return the outline of an X in the place of a shape."""
    center_x, center_y = drawn.center_xy
    radius = drawn.radius_px
    return tuple(
        ((center_x + radius * x) * scale, (center_y + radius * y) * scale) for x, y in _UNIT_X
    )


def _on_grid(labelled: Labelled) -> Labelled:
    """Return boxes whose edges are at the centre of every `_STEP_BINS`th bin of a square image."""
    image, objects = labelled
    bin_px = image.size_wh[0] / NUM_BINS
    last = (NUM_BINS - 1) // _STEP_BINS
    snapped = []
    for label, box in objects:
        steps = (np.array(box) / bin_px - 0.5) / _STEP_BINS
        x1, y1, x2, y2 = (steps.round().clip(0, last) * _STEP_BINS + 0.5) * bin_px
        snapped.append((label, (float(x1), float(y1), float(x2), float(y2))))
    return image, snapped


if __name__ == "__main__":
    main(sys.argv[1:])
