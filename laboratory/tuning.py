"""Writes the labelled scenes of the example of docs/fine-tuning.md: `python -m laboratory.tuning
new-shape FOLDER`.

FOLDER/train, FOLDER/test and FOLDER/known have 400, 200 and 200 scenes labelled by shape. In the
first two every third shape is an X, which no embedded model has seen. Boxes lie on the grid that
the embedded models write: their other locations are untrained.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import default_rng

from export.scenes import CANVAS_PX, SHAPES, draw_ring, render_scene, sample_scene
from laboratory.scenes import PLAIN_PX, Labelled, labelled, write_coco
from tasks.florence2.grammar import NUM_BINS

X = "X"
_X_SHARE = 1 / 3
_NOTCH = 0.3  # depth of the notches' points, and width of an arm's end; the box is from -1 to 1
_SIDE = ((_NOTCH - 1, -1), (0, -_NOTCH), (1 - _NOTCH, -1))  # with its notch
_FIRST_SEED = 600_000_000  # no training or evaluation of embedded models has it
_SEEDS_APART = 1000
_STEP_BINS = 8
_BIN_PX = PLAIN_PX / NUM_BINS


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
    """Yield scenes in which a `share` of the shapes is drawn as an X, with boxes on the grid."""
    quarter_turn = np.array([[0, 1], [-1, 0]])
    sides = [_SIDE @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)]
    unit_x = np.concatenate(sides)
    for seed in seeds:
        scene = sample_scene(seed)
        rng = default_rng((seed, 6))
        is_x = [rng.random() < share for _ in scene.objects]
        shapes = tuple(drawn for drawn, x in zip(scene.objects, is_x, strict=True) if not x)
        image = render_scene(replace(scene, objects=shapes), PLAIN_PX)
        squares = []
        for drawn in scene.objects:
            if drawn not in shapes:
                ring = (unit_x * drawn.radius_px + drawn.center_xy) * PLAIN_PX / CANVAS_PX
                draw_ring(image, tuple(map(tuple, ring.tolist())), drawn.rgb)
                drawn = replace(drawn, shape="square")  # an X has the box of a square
            squares.append(drawn)
        _, boxes = labelled(image, squares)
        rows = []
        for (label, box), x in zip(boxes, is_x, strict=True):
            rows.append((X if x else label, _on_grid(box)))
        yield image, rows


def _on_grid(box: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Return the box with its edges at the centres of every `_STEP_BINS`th bin."""
    steps = (np.array(box) / _BIN_PX - 0.5) / _STEP_BINS
    last = (NUM_BINS - 1) // _STEP_BINS
    x1, y1, x2, y2 = ((steps.round().clip(0, last) * _STEP_BINS + 0.5) * _BIN_PX).tolist()
    return x1, y1, x2, y2


if __name__ == "__main__":
    if sys.argv[1:2] != ["new-shape"] or len(sys.argv) != 3:
        sys.exit(__doc__)
    write_new_shape(Path(sys.argv[2]), 200)
