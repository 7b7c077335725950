"""Fits the calibrations of the embedded models' scores: `python -m laboratory.calibration MODEL…`.

Writes models/ID/calibration.json, which the next export adds to the artifacts. Scenes are rendered
clean, blurred, and so small that the models err. Scores in tiles are fitted on large images. The
smallest object that a model finds, which `tiles: auto` reads, is measured on sharp shapes of many
sizes. Needs the group `dev`, for `diptych evaluate`.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from diptych_client import Client, DetectionsResult, TaskParameters
from diptych_client.tools.matching import Floats, LabelledBox, match
from diptych_client.tools.objects import isotonic
from export.checkpoints.bases import ROOT
from export.scenes import (
    COLOR_RGB,
    COLORS,
    SHAPES,
    SceneObject,
    box_xyxy,
    draw_ring,
    outline_xy,
    render_background,
    render_scene,
    sample_scene,
)
from laboratory.processes import Launch, free_port, running
from laboratory.scenes import PLAIN_PX, Labelled, evaluation_scene, labelled, png, write_coco
from tasks.tiles.grid import Grid, tile_boxes
from wire.artifacts.manifest import CALIBRATION_FILE

TASKS = ("object_detection", "open_vocabulary_detection", "region_proposal")
_CONDITIONS = ((PLAIN_PX, 0.0), (PLAIN_PX, 1.5), (40, 0.0), (22, 0.0))  # side and blur, px
_IN_TILES = ("--tiles", "4x5", "--concurrency", "2")  # more would be refused as overload
_FIRST_SCENE = 100_000  # scenes below it measure
_FIRST_LARGE_SEED = 950_000_000
_MIN_RECALL_SHARE = 0.95  # recall, as a share of the larger half's


def main(models: Sequence[str]) -> None:
    """Fit the models and write their files."""
    port = free_port()
    settings = {"DIPTYCH_MODELS": ",".join(models), "DIPTYCH_CALIBRATION": "off"}
    settings |= {"DIPTYCH_PORT": str(port), "DIPTYCH_GRPC_PORT": "0"}
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", settings)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_coco(folder / "scenes", difficult_scenes(1200))
        write_coco(folder / "large", large_images(75))
        with running(launch, ROOT / "build" / "calibration.log"), Client(launch.url) as client:
            for model in client.models():
                rows = []
                for task in filter(model.tasks.__contains__, TASKS):
                    row = _fitted(launch.url, model.id, task, folder / "scenes")
                    rows.append(
                        row | {"min_object_share": min_object_share(client, model.id, task)}
                    )
                    rows.append(_fitted(launch.url, model.id, task, folder / "large", *_IN_TILES))
                document = json.dumps({"calibrations": rows}, indent=1)
                file = ROOT / "models" / model.id / CALIBRATION_FILE
                file.write_text(f"{document}\n", encoding="utf-8")


def difficult_scenes(num_scenes: int) -> Iterator[Labelled]:
    """Yield scenes under all conditions, each of its own: familiarity needs independent ones."""
    for index in range(num_scenes):
        scene = evaluation_scene(_FIRST_SCENE + index)
        size_px, blur_px = _CONDITIONS[index % len(_CONDITIONS)]
        image = render_scene(scene, size_px).filter(ImageFilter.GaussianBlur(blur_px))
        yield labelled(image, scene.objects)


def large_images(num_images: int) -> Iterator[Labelled]:
    """Yield images with a shape in each of many cells; every fourth is textured and has none."""
    for index in range(num_images):
        num_shapes = 0 if index % 4 == 3 else 12
        canvas = _background(index, (2000, 1500))
        image, boxes = in_cells(index, canvas, Grid(3, 4), num_shapes, (48, 400))
        if not boxes:
            levels = default_rng(index).integers(0, 256, (188, 250, 3), np.uint8)
            image = Image.blend(image, Image.fromarray(levels).resize(image.size), 0.3)
        yield image, boxes


def min_object_share(client: Client, model: str, task: str) -> float:
    """Return the size from which on a model finds nearly as many objects as of the larger half.

    Sizes are the square root of a box's share of its image.
    """
    labels = SHAPES if task == "open_vocabulary_detection" else None
    has_labels = task != "region_proposal"
    shares = []
    are_found = []
    for image, truths in images_of_all_sizes(300):
        answer = client.predict(png(image), task, TaskParameters(labels=labels), model=model)
        assert isinstance(answer.result, DetectionsResult)
        true_boxes = [LabelledBox(label if has_labels else "", box) for label, box in truths]
        boxes = []
        for detection in answer.result.detections:
            boxes.append(LabelledBox(detection.label if has_labels else "", detection.box_xyxy))
        for pair in match(true_boxes, boxes):
            if pair.truth is not None:
                x1, y1, x2, y2 = true_boxes[pair.truth].box_xyxy
                shares.append(math.sqrt((x2 - x1) / image.width * (y2 - y1) / image.height))
                are_found.append(pair.kind in ("right", "loosely placed"))
    return smallest_found(np.array(shares), np.array(are_found))


def smallest_found(shares: Floats, are_found: NDArray[np.bool_]) -> float:
    needed = _MIN_RECALL_SHARE * are_found[shares >= np.median(shares)].mean()
    sizes, recalls = isotonic(shares, are_found)
    return sizes[int(np.searchsorted(recalls, needed))]


def images_of_all_sizes(num_images: int) -> Iterator[Labelled]:
    """Yield images with one to four shapes of .03 to .33 of the side; training has .11 on."""
    for index in range(num_images):
        canvas = _background(index, (768, 768))
        yield in_cells(index, canvas, Grid(2, 2), 1 + index % 4, (23, 253))


def in_cells(
    index: int, image: Image.Image, grid: Grid, num_shapes: int, sizes_px: tuple[int, int]
) -> Labelled:
    """Draw shapes at random places of different cells of an image, so that none touch."""
    rng = default_rng(_FIRST_LARGE_SEED + index)
    boxes = []
    for left, top, right, bottom in rng.permutation(tile_boxes(grid, image.size, 0.0))[:num_shapes]:
        radius = float(np.exp(rng.uniform(*np.log(sizes_px)))) / 2
        margin = radius + 4
        x = float(rng.uniform(left + margin, right - margin))
        y = float(rng.uniform(top + margin, bottom - margin))
        color = COLORS[int(rng.integers(len(COLORS)))]
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        drawn = SceneObject(color, shape, "small", COLOR_RGB[color], (x, y), radius)
        draw_ring(image, outline_xy(drawn), drawn.rgb)
        boxes.append((shape, box_xyxy(drawn)))
    return image, boxes


def _background(index: int, size_wh: tuple[int, int]) -> Image.Image:
    background = sample_scene(_FIRST_LARGE_SEED + index, num_objects=0).background
    return render_background(background, PLAIN_PX).resize(size_wh)


def _fitted(url: str, model: str, task: str, dataset: Path, *options: str) -> dict[str, Any]:
    """Return the calibration of one task, fitted on a dataset by `diptych evaluate`."""
    out = dataset.with_name(f"{model} {task} {dataset.name}")
    file = out.with_suffix(".json")
    diptych = Path(sys.executable).with_name("diptych")
    command: list[str | Path] = [diptych, "--url", url, "evaluate", dataset, "--models", model]
    command += ["--task", task, "--calibrate", file, "--gallery", "0", "--out", out, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the progress bar is on stderr
    (row,) = json.loads(file.read_text(encoding="utf-8"))["calibrations"]
    return dict(row)


if __name__ == "__main__":
    main(sys.argv[1:] or ["florence-2-mini", "paligemma-mini"])
