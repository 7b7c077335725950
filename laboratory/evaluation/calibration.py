"""Fits the calibrations of the embedded models' scores and measures them on other scenes; prints a
table.

    python -m laboratory.evaluation.calibration [--models ID …] [--scenes N]

Writes models/ID/calibration.json, which the next export adds to the artifacts. Scenes are rendered
clean, blurred, and so small that the models err. Needs the group `dev`, for `diptych
evaluate`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from export.checkpoints.jobs import ROOT
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.coco_scenes import write_coco_scenes
from laboratory.evaluation.service_process import service_process
from loadtest.figures import table
from wire.artifacts.manifest import CALIBRATION_FILE

CALIBRATED_TASKS = ("object_detection", "open_vocabulary_detection", "region_proposal")
SCENE_CONDITIONS = ("plain", "blurred", "40px", "22px")
ALL = "all"
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
        with service_process(1, DIPTYCH_MODELS=models, DIPTYCH_CALIBRATION="off") as client:
            files = [_fit(client, model, folder) for model in parsed.models]
            before = _errors(client, parsed.models, folder, "before", [ALL])
        with service_process(
            1, DIPTYCH_MODELS=models, DIPTYCH_CALIBRATION=",".join(map(str, files))
        ) as client:
            after = _errors(client, parsed.models, folder, "after", [ALL, *SCENE_CONDITIONS])
    rows = []
    for model, task, _ in before:
        errors = [before[model, task, ALL]]
        errors += [after[model, task, each] for each in (ALL, *SCENE_CONDITIONS)]
        rows.append([model, task, *(f"{error / 100:.3f}" for error in errors)])
    print(table(["model", "task", "original scores", "calibrated", *SCENE_CONDITIONS], rows))


def _fit(client: httpx.Client, model: str, folder: Path) -> Path:
    """Write the calibrations of all tasks of a model into one file and return it."""
    rows = []
    for task in _tasks(client, model):
        part = folder / f"{model}-{task}.json"
        out = folder / f"fit-{model}-{task}"
        _evaluate(client, model, task, folder / "fitting", out, "--calibrate", part)
        rows += json.loads(part.read_text(encoding="utf-8"))["calibrations"]
    path = ROOT / "models" / model / CALIBRATION_FILE
    path.write_text(json.dumps({"calibrations": rows}, indent=1) + "\n", encoding="utf-8")
    return path


def _errors(
    client: httpx.Client, models: Sequence[str], folder: Path, name: str, conditions: Sequence[str]
) -> Errors:
    errors = {}
    for model in models:
        for task, condition in product(_tasks(client, model), conditions):
            out = folder / f"{name}-{model}-{task}-{condition}"
            _evaluate(client, model, task, folder / condition, out)
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
