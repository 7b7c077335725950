"""Writes labelled scenes on which an embedded model is tuned, the examples of docs/fine-tuning.md.

    python -m laboratory.tuning colours FOLDER
    python -m laboratory.tuning kangaroos FOLDER MATERIAL

`colours`: 200 scenes of shapes, labelled by colour and shape. `kangaroos`: FOLDER/train,
FOLDER/test and FOLDER/known, 400, 200 and 200 images of one to four things; in the first two every
third thing is a kangaroo, which no embedded model has seen. MATERIAL is the folder of `python -m
laboratory.things`.

Boxes lie on the grid that the embedded models write: their other locations are untrained.
"""

import sys
from pathlib import Path

import numpy as np

from export.scenes import sample_scene
from export.scenes.geometry import box_xyxy
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.coco_scenes import Labelled, scaled, write_coco
from laboratory.things import Material
from laboratory.things.calibration import KNOWN_SHARES, scenes_of_all_sizes
from laboratory.things.catalogue import THINGS, Thing
from tasks.florence2.locations import NUM_BINS

KANGAROO = Thing("🦘", "kangaroo", "kangaroos", ("animal",), (), None, ())
_SOME_KANGAROOS = (*THINGS, *[KANGAROO] * (len(THINGS) // 2))
_FIRST_SEED = 600_000_000  # no training or evaluation of embedded models has it
_STEP_BINS = 8


def main(arguments: list[str]) -> None:
    """Write the scenes of an example."""
    match arguments:
        case ["colours", folder]:
            write_named_shapes(Path(folder), 200)
        case ["kangaroos", folder, material]:
            write_kangaroos(Path(folder), Material(Path(material)))
        case _:
            sys.exit(__doc__)


def write_named_shapes(folder: Path, num_scenes: int) -> None:
    """Write scenes with labels like `blue star`."""
    named = []
    names = dict[str, None]()  # a set with an order
    for seed in range(_FIRST_SEED, _FIRST_SEED + num_scenes):
        scene = sample_scene(seed)
        boxes = [(drawn.name, box_xyxy(drawn)) for drawn in scene.objects]
        named.append(_on_grid(scaled(CONDITIONS["plain"](scene), boxes)))
        names |= dict.fromkeys(drawn.name for drawn in scene.objects)
    write_coco(folder, named, list(names))


def write_kangaroos(folder: Path, material: Material, num_images: int = 200) -> None:
    """Write `test` and `known` with `num_images` each, and `train` with twice as many."""
    datasets = {"train": (2, _SOME_KANGAROOS), "test": (1, _SOME_KANGAROOS), "known": (1, THINGS)}
    names = [thing.name for thing in (*THINGS, KANGAROO)]
    for seed, (name, (factor, things)) in enumerate(datasets.items()):
        images = scenes_of_all_sizes(material, factor * num_images, seed, things, KNOWN_SHARES)
        write_coco(folder / name, map(_on_grid, images), names)


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
