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

from export.checkpoints.bases import ROOT
from laboratory.evaluation.client import offered_tasks, service_process
from laboratory.evaluation.scenes import images_of_all_sizes, large_images, rendered, write_coco
from loadtest.figures import table
from wire.artifacts.manifest import CALIBRATION_FILE

_TASKS = ("object_detection", "open_vocabulary_detection", "region_proposal")
_CONDITIONS = ("plain", "blurred", "40px", "22px")
_ALL = "all"
_TILES = "tiles"  # large images, asked about in tiles
_IN_TILES = ("--tiles", "4x5", "--concurrency", "2")  # more would be refused as overload
_LARGE_SHARE = 1 / 2  # large images have many objects
_FIRST_FITTING_SCENE = 100_000  # scenes below it measure


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write the files, and compare the calibration error of original and calibrated scores."""
    summary = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(
        "python -m laboratory.evaluation.calibration", description=summary
    )
    models = ["florence-2-mini", "paligemma-mini"]
    parser.add_argument("--models", nargs="+", metavar="ID", default=models, help="default: both")
    scenes = "scenes to measure; twice as many are fitted"
    parser.add_argument("--scenes", type=int, default=150, metavar="N", help=scenes)
    parsed = parser.parse_args(arguments)
    served = ",".join(parsed.models)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _write_images(folder, parsed.scenes)
        with service_process(1, DIPTYCH_MODELS=served, DIPTYCH_CALIBRATION="off") as client:
            files = [_fit(client, model, folder) for model in parsed.models]
            before = _errors(client, parsed.models, folder, "before")
        calibrations = ",".join(map(str, files))
        with service_process(1, DIPTYCH_MODELS=served, DIPTYCH_CALIBRATION=calibrations) as client:
            after = _errors(client, parsed.models, folder, "after")
    rows = []
    for model, task in before:
        original = before[model, task]
        calibrated = after[model, task]
        errors = [original[_ALL], *(calibrated[name] for name in (_ALL, *_CONDITIONS))]
        errors += [original[_TILES], calibrated[_TILES]]
        rows.append([model, task, *(f"{error / 100:.3f}" for error in errors)])
    columns = ["original scores", "calibrated", *_CONDITIONS, "in tiles", "calibrated"]
    print(table(["model", "task", *columns], rows))


def _write_images(folder: Path, num_scenes: int) -> None:
    """Write a dataset into `folder` for each fit and each measurement."""
    first = _FIRST_FITTING_SCENE
    num_large = math.ceil(num_scenes * _LARGE_SHARE)
    datasets = {
        "fitting": rendered(_CONDITIONS, range(first, first + 2 * num_scenes)),
        "sizes": images_of_all_sizes(2 * num_scenes),
        "fitting in tiles": large_images(num_large, seed=1),
        _TILES: large_images(num_large, seed=2),
        _ALL: rendered(_CONDITIONS, range(num_scenes)),
    }
    for name in _CONDITIONS:
        datasets[name] = rendered([name], range(num_scenes))
    for name, images in datasets.items():
        write_coco(folder / name, images)


def _fit(client: httpx.Client, model: str, folder: Path) -> Path:
    """Write the calibrations of all tasks of a model into one file and return it."""
    rows = []
    for task in _tasks(client, model):
        plain = _fitted(client, model, task, folder / "fitting")
        sizes = _fitted(client, model, task, folder / "sizes")
        rows.append(plain | {"min_object_share": sizes["min_object_share"]})
        rows.append(_fitted(client, model, task, folder / "fitting in tiles", *_IN_TILES))
    path = ROOT / "models" / model / CALIBRATION_FILE
    path.write_text(json.dumps({"calibrations": rows}, indent=1) + "\n", encoding="utf-8")
    return path


def _fitted(
    client: httpx.Client, model: str, task: str, images: Path, *options: str
) -> dict[str, Any]:
    """Return the calibration of one task, fitted on a dataset."""
    out = images.with_name(f"fit {model} {task} {images.name}")
    file = out.with_suffix(".json")
    _evaluate(client, model, task, images, out, "--calibrate", file, *options)
    (row,) = json.loads(file.read_text(encoding="utf-8"))["calibrations"]
    return dict(row)


def _errors(
    client: httpx.Client, models: Sequence[str], folder: Path, name: str
) -> Mapping[tuple[str, str], Mapping[str, float]]:
    """Return the calibration errors of each model and task by dataset, in hundredths."""
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for model in models:
        for task, dataset in product(_tasks(client, model), (_ALL, *_CONDITIONS, _TILES)):
            out = folder / f"{name}-{model}-{task}-{dataset}"
            options = _IN_TILES if dataset == _TILES else ()
            _evaluate(client, model, task, folder / dataset, out, *options)
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            interval = report["measured"]["intervals"][model]["calibration error"]
            errors.setdefault((model, task), {})[dataset] = interval["value"]
    return errors


def _evaluate(
    client: httpx.Client, model: str, task: str, dataset: Path, out: Path, *options: str | Path
) -> None:
    """Run `diptych evaluate` (group `dev`) against the service of `client`."""
    diptych = Path(sys.executable).with_name("diptych")
    files = (dataset / "annotations.json", "--images", dataset / "images")
    words = ("--models", model, "--task", task, "--gallery", "0", "--out", out, *options)
    command = (diptych, "--url", str(client.base_url), "evaluate", *files, *words)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the progress bar is on stderr


def _tasks(client: httpx.Client, model: str) -> Iterator[str]:
    tasks = offered_tasks(client, model)
    return (task for task in _TASKS if task in tasks)


if __name__ == "__main__":
    main()
