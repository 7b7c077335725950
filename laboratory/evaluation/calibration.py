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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from export.checkpoints.bases import ROOT
from export.scenes.scene import SHAPES
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.coco_scenes import Labelled, labelled, rendered, write_coco
from laboratory.evaluation.conditions import Condition
from laboratory.evaluation.service_process import service_process
from laboratory.tile_scenes import scenes, scenes_of_all_sizes
from loadtest.figures import table
from wire.artifacts.manifest import CALIBRATION_FILE

ALL = "all"
TILES = "tiles"  # large images, asked about in tiles
LARGE_KINDS = ("48 px", "80 px", "140 px", "250 px", "pairs", "large", "textured", "empty")
LARGE_SIZE_WH = (2000, 1500)
_IN_TILES = ("--tiles", "4x5", "--concurrency", "2")  # more would be refused as overload
_SCENES_OF_A_KIND = 1 / 15  # large images have many objects
_FIRST_FITTING_SCENE = 100_000  # scenes below it measure
_ERROR = "calibration error"

Errors = Mapping[tuple[str, str, str], float]  # hundredths, keyed by model, task, condition


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """The images of a calibration, their classes, and the tasks that models are asked.

    Sets of one calibration have the same conditions.
    """

    names: Sequence[str]
    tasks: Sequence[str]
    conditions: Sequence[str]
    scenes: Callable[[Sequence[Condition], Iterable[int]], Iterable[Labelled]]
    scenes_of_all_sizes: Callable[[int], Iterable[Labelled]]
    large_images: Callable[[int, int], Iterable[Labelled]]  # number of each kind, seed


Part = tuple[CalibrationSet, Path]  # the folder holds its images


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and measure on scenes of shapes."""
    name = "python -m laboratory.evaluation.calibration"
    parser = calibration_parser(name, __doc__ or "")
    models = ["florence-2-mini", "paligemma-mini"]
    both = "default: both embedded models"
    parser.add_argument("--models", nargs="+", metavar="ID", default=models, help=both)
    parsed = parser.parse_args(arguments)
    shapes = CalibrationSet(
        names=SHAPES,
        tasks=("object_detection", "open_vocabulary_detection", "region_proposal"),
        conditions=("plain", "blurred", "40px", "22px"),
        scenes=rendered,
        scenes_of_all_sizes=lambda num: labelled(scenes_of_all_sizes(num)),
        large_images=_large_images,
    )
    calibrate(parsed.models, [shapes], parsed.scenes)


def calibration_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """Return a parser of `--scenes`."""
    summary = documentation.partition("\n\n")[0]
    parser = argparse.ArgumentParser(name, description=summary)
    scenes = "scenes to measure; twice as many are fitted"
    parser.add_argument("--scenes", type=int, default=150, metavar="N", help=scenes)
    return parser


def calibrate(models: Sequence[str], sets: Sequence[CalibrationSet], num_scenes: int) -> None:
    """Fit, write the files, and compare the calibration error of original and calibrated scores."""
    served = ",".join(models)
    conditions = sets[0].conditions
    with TemporaryDirectory() as temporary:
        with service_process(1, DIPTYCH_MODELS=served, DIPTYCH_CALIBRATION="off") as client:
            parts: list[Part] = []
            for number, data in enumerate(sets):
                if any(_tasks(client, model, data) for model in models):
                    folder = Path(temporary) / str(number)
                    _write_images(folder, data, num_scenes)
                    parts.append((data, folder))
            files = [_fit(client, model, parts) for model in models]
            before = _errors(client, models, parts, "before", [ALL, TILES])
        with service_process(
            1, DIPTYCH_MODELS=served, DIPTYCH_CALIBRATION=",".join(map(str, files))
        ) as client:
            after = _errors(client, models, parts, "after", [ALL, *conditions, TILES])
    rows = []
    for model, task, condition in before:
        if condition == ALL:
            errors = [before[model, task, ALL]]
            errors += [after[model, task, each] for each in (ALL, *conditions)]
            errors += [before[model, task, TILES], after[model, task, TILES]]
            rows.append([model, task, *(f"{error / 100:.3f}" for error in errors)])
    columns = ["original scores", "calibrated", *conditions, "in tiles", "calibrated"]
    print(table(["model", "task", *columns], rows))


def _write_images(folder: Path, data: CalibrationSet, num_scenes: int) -> None:
    """Write a dataset into `folder` for each fit and each measurement."""
    everything = [CONDITIONS[name] for name in data.conditions]
    first = _FIRST_FITTING_SCENE
    num_large = math.ceil(num_scenes * _SCENES_OF_A_KIND)
    images_of = {
        "fitting": data.scenes(everything, range(first, first + 2 * num_scenes)),
        ALL: data.scenes(everything, range(num_scenes)),
        "sizes": data.scenes_of_all_sizes(2 * num_scenes),
        "fitting in tiles": data.large_images(num_large, 1),
        TILES: data.large_images(num_large, 2),
    }
    for name in data.conditions:
        images_of[name] = data.scenes([CONDITIONS[name]], range(num_scenes))
    for name, images in images_of.items():
        write_coco(folder / name, images, data.names)


def _large_images(num_of_a_kind: int, seed: int) -> Iterator[Labelled]:
    for kind in LARGE_KINDS:
        yield from labelled(scenes(kind, num_of_a_kind, seed, LARGE_SIZE_WH))


def _fit(client: httpx.Client, model: str, parts: Iterable[Part]) -> Path:
    """Write the calibrations of all tasks of a model into one file and return it."""
    rows: list[Mapping[str, Any]] = []
    for data, folder in parts:
        for task in _tasks(client, model, data):
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
    client: httpx.Client,
    models: Sequence[str],
    parts: Iterable[Part],
    name: str,
    conditions: Sequence[str],
) -> Errors:
    errors = {}
    for (data, folder), model in product(parts, models):
        for task, condition in product(_tasks(client, model, data), conditions):
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
    files = (scenes / "annotations.json", "--images", scenes / "images")
    words = ("--models", model, "--task", task, "--gallery", "0", "--out", out, *more)
    command = (diptych, "--url", str(client.base_url), "evaluate", *files, *words)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the progress bar is on stderr


def _tasks(client: httpx.Client, model: str, data: CalibrationSet) -> list[str]:
    offered = offered_tasks(client, model)
    return [task for task in data.tasks if task in offered]


if __name__ == "__main__":
    main()
