"""Fits the calibrations of the embedded models' scores and measures them on other scenes; prints a
table.

    python -m laboratory.evaluation.calibration [--models ID …] [--scenes N]

Writes models/ID/calibration.json, which the next export adds to the artifacts. Scenes are rendered
clean, blurred, and so small that the models err. Scores in tiles are fitted on large images, and
the smallest object that a model finds on shapes of many sizes. Needs the group `dev`, for `diptych
evaluate`.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from export.checkpoints.jobs import ROOT
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.coco_scenes import Labelled, labelled, write_coco, write_coco_scenes
from laboratory.evaluation.service_process import service_process
from laboratory.tile_scenes import scenes, scenes_of_all_sizes
from loadtest.figures import table
from wire.artifacts.manifest import CALIBRATION_FILE

CALIBRATED_TASKS = ("object_detection", "open_vocabulary_detection", "region_proposal")
SCENE_CONDITIONS = ("plain", "blurred", "40px", "22px")
ALL = "all"
TILES = "tiles"  # large images, asked about in tiles
LARGE_KINDS = ("48 px", "80 px", "140 px", "250 px", "pairs", "large", "textured", "empty")
_LARGE_SIZE_WH = (2000, 1500)
_IN_TILES = ("--tiles", "4x5", "--concurrency", "2")  # more would be refused as overload
_SCENES_OF_A_KIND = 1 / 15  # large images have many objects
_FIRST_FITTING_SCENE = 100_000  # scenes below it measure
_ERROR = "calibration error"

Errors = Mapping[tuple[str, str, str], float]  # hundredths, keyed by model, task, condition


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write the files, and compare the calibration error of original and calibrated scores."""
    parsed = _parse(arguments)
    models = ",".join(parsed.models)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        everything = [CONDITIONS[name] for name in SCENE_CONDITIONS]
        first = _FIRST_FITTING_SCENE
        fitted = range(first, first + 2 * parsed.scenes)
        write_coco_scenes(folder / "fitting", everything, fitted)
        write_coco_scenes(folder / ALL, everything, range(parsed.scenes))
        for name in SCENE_CONDITIONS:
            write_coco_scenes(folder / name, [CONDITIONS[name]], range(parsed.scenes))
        write_coco(folder / "sizes", labelled(scenes_of_all_sizes(2 * parsed.scenes)))
        num_large = math.ceil(parsed.scenes * _SCENES_OF_A_KIND)
        write_coco(folder / "fitting in tiles", _large_images(num_large, seed=1))
        write_coco(folder / TILES, _large_images(num_large, seed=2))
        with service_process(1, DIPTYCH_MODELS=models, DIPTYCH_CALIBRATION="off") as client:
            files = [_fit(client, model, folder) for model in parsed.models]
            before = _errors(client, parsed.models, folder, "before", [ALL, TILES])
        with service_process(
            1, DIPTYCH_MODELS=models, DIPTYCH_CALIBRATION=",".join(map(str, files))
        ) as client:
            measured = (ALL, *SCENE_CONDITIONS, TILES)
            after = _errors(client, parsed.models, folder, "after", measured)
    rows = []
    for model, task, condition in before:
        if condition == ALL:
            errors = [before[model, task, ALL]]
            errors += [after[model, task, each] for each in (ALL, *SCENE_CONDITIONS)]
            errors += [before[model, task, TILES], after[model, task, TILES]]
            rows.append([model, task, *(f"{error / 100:.3f}" for error in errors)])
    columns = ["original scores", "calibrated", *SCENE_CONDITIONS, "in tiles", "calibrated"]
    print(table(["model", "task", *columns], rows))


def _large_images(num_of_a_kind: int, seed: int) -> Iterator[Labelled]:
    for kind in LARGE_KINDS:
        yield from labelled(scenes(kind, num_of_a_kind, seed, _LARGE_SIZE_WH))


def _fit(client: httpx.Client, model: str, folder: Path) -> Path:
    """Write the calibrations of all tasks of a model into one file and return it."""
    rows: list[Mapping[str, Any]] = []
    for task in _tasks(client, model):
        plain = _fitted(client, model, task, folder / "fitting")
        sizes = _fitted(client, model, task, folder / "sizes")
        rows.append(plain | {"min_object_share": sizes["min_object_share"]})
        rows.append(_fitted(client, model, task, folder / "fitting in tiles", *_IN_TILES))
    path = ROOT / "models" / model / CALIBRATION_FILE
    path.write_text(json.dumps({"calibrations": rows}, indent=1) + "\n", encoding="utf-8")
    return path


def _fitted(
    client: httpx.Client, model: str, task: str, images: Path, *more: str
) -> dict[str, Any]:
    """Return the calibration of one task, fitted on a folder of images."""
    out = images.with_name(f"fit {model} {task} {images.name}")
    file = out.with_suffix(".json")
    _evaluate(client, model, task, images, out, "--calibrate", file, *more)
    (row,) = json.loads(file.read_text(encoding="utf-8"))["calibrations"]
    return dict(row)


def _errors(
    client: httpx.Client, models: Sequence[str], folder: Path, name: str, conditions: Sequence[str]
) -> Errors:
    errors = {}
    for model in models:
        for task, condition in product(_tasks(client, model), conditions):
            out = folder / f"{name}-{model}-{task}-{condition}"
            more = _IN_TILES if condition == TILES else ()
            _evaluate(client, model, task, folder / condition, out, *more)
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            interval = report["measured"]["intervals"][model][_ERROR]
            errors[model, task, condition] = interval["value"]
    return errors


def _evaluate(
    client: httpx.Client, model: str, task: str, scenes: Path, out: Path, *more: str | Path
) -> None:
    """Run `diptych evaluate` (group `dev`) against the service of `client`."""
    diptych = Path(sys.executable).with_name("diptych")
    data = (scenes / "annotations.json", "--images", scenes / "images")
    words = ("--models", model, "--task", task, "--gallery", "0", "--out", out, *more)
    command = (diptych, "--url", str(client.base_url), "evaluate", *data, *words)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the progress bar is on stderr


def _tasks(client: httpx.Client, model: str) -> list[str]:
    offered = offered_tasks(client, model)
    return [task for task in CALIBRATED_TASKS if task in offered]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    name = "python -m laboratory.evaluation.calibration"
    parser = argparse.ArgumentParser(name, description=summary)
    models = ["florence-2-mini", "paligemma-mini"]
    both = "default: both embedded models"
    parser.add_argument("--models", nargs="+", metavar="ID", default=models, help=both)
    scenes = "scenes to measure; twice as many are fitted"
    parser.add_argument("--scenes", type=int, default=150, metavar="N", help=scenes)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
