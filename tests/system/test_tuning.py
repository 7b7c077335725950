"""From labelled images to a served adapter: `python -m export.tune`, the watched folder, and the
running service.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.scenes import CANVAS_PX, SHAPES, SceneObject, draw_ring, render_scene, sample_scene
from export.tune import main
from laboratory.scenes import PLAIN_PX, Labelled, labelled, write_coco
from tasks.florence2.grammar import NUM_BINS
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ModelStore
from tests.support.running_service import forked_service

pytestmark = pytest.mark.long

X = "X"
X_EVERY = 3
NUM_SCENES = 200
# Half of its box, in which an arm ends at 0.7: its sides have notches.
QUARTER_X = ((-0.7, -1), (0, -0.3), (0.7, -1))
BIN_PX = PLAIN_PX / NUM_BINS
STEP_BINS = 8  # of the grid of the embedded models: their other locations are untrained
FIRST_SEED = 600_000_000  # no training or evaluation of embedded models has it


def scenes_with_x(seeds: range) -> Iterator[Labelled]:
    """Yield scenes in which every third shape is an X, with boxes on the models' grid."""
    quarter_turn = np.array([[0, 1], [-1, 0]])
    sides = [QUARTER_X @ np.linalg.matrix_power(quarter_turn, turn) for turn in range(4)]
    unit_x = np.concatenate(sides)
    num_shapes = 0
    for seed in seeds:
        scene = sample_scene(seed)
        shapes = list[SceneObject]()
        crosses = list[SceneObject]()
        for drawn in scene.objects:
            num_shapes += 1
            (shapes if num_shapes % X_EVERY else crosses).append(drawn)
        image = render_scene(replace(scene, objects=tuple(shapes)), PLAIN_PX)
        for drawn in crosses:
            ring = (unit_x * drawn.radius_px + drawn.center_xy) * PLAIN_PX / CANVAS_PX
            draw_ring(image, tuple(map(tuple, ring.tolist())), drawn.rgb)
        squares = [replace(drawn, shape="square") for drawn in crosses]  # its box is a square's
        boxes = [*labelled(image, shapes)[1]]
        boxes += [(X, box) for _, box in labelled(image, squares)[1]]
        boxes.sort(key=lambda row: row[1][0] + row[1][2])  # as the models write them
        yield image, [(label, on_grid(box)) for label, box in boxes]


def on_grid(box: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Return the box with its edges at the centres of every `STEP_BINS`th bin."""
    steps = (np.array(box) / BIN_PX - 0.5) / STEP_BINS
    last = (NUM_BINS - 1) // STEP_BINS
    x1, y1, x2, y2 = ((steps.round().clip(0, last) * STEP_BINS + 0.5) * BIN_PX).tolist()
    return x1, y1, x2, y2


def test_new_shape_is_learnt(exported: ModelStore, tmp_path: Path) -> None:
    """AP50 of a shape that florence-2-mini has never seen."""
    scenes = tmp_path / "scenes"
    adapters = tmp_path / "adapters"
    first_test = FIRST_SEED + 2 * NUM_SCENES
    for name, seeds in (
        ("train", range(FIRST_SEED, first_test)),
        ("test", range(first_test, first_test + NUM_SCENES)),
    ):
        write_coco(scenes / name, scenes_with_x(seeds), (*SHAPES, X))
    options = ["--base", "florence-2-mini", "--task", "object_detection"]
    options += ["--epochs", "12", "--batch-size", "16", "--learning-rate", "3e-3"]
    assert main([str(scenes / "train"), *options, "--output", str(adapters / "x-shape")]) == 0
    settings = {"DIPTYCH_MODELS": "florence-2-mini", "DIPTYCH_ADAPTERS": str(adapters)}
    with forked_service(exported.home, tmp_path / "log", **settings) as service:
        words = ["evaluate", str(scenes / "test"), "--task", "object_detection"]
        words += ["--models", "florence-2-mini,x-shape", "--out", str(tmp_path / "report")]
        subprocess.run([DIPTYCH, "--url", service.url, *words], check=True)
    details = json.loads((tmp_path / "report" / "report.json").read_text())["details"]
    models = ("florence-2-mini", "x-shape")
    base, tuned = (details[model]["by_class"][X]["AP50"] for model in models)
    assert (round(base, 1), tuned >= 80) == (0, True)
