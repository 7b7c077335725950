"""Simulates `diptych annotate --labelled`: how often the accepted labels break the promise.

    python -m laboratory.evaluation.guarantees [--scenes N] [--draws N] [--labelled N] [--answers D]

Both embedded models answer held-out scenes once, plain, of 40 px and mixed with 22 px. Each draw
takes labelled and unlabelled scenes, chooses a threshold, and compares its share of wrong labels
with that of all answers. Prints a table; `found` is the share of the true objects that have a right
label. Needs the group `dev`, for `diptych evaluate`. `laboratory/lookalikes.py` does the same with
things.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from diptych_client.annotate.guarantee import Promise
from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Record
from diptych_client.annotate.judging import Judged, Tolerance, judge, truth_of
from diptych_client.evaluation.dataset import LabelledImage
from diptych_client.evaluation.readers import read_dataset
from diptych_client.requests import AnswerOptions, TaskParameters
from diptych_client.transports.rest_messages import answer_from_json
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.guarantee_draws import (
    Draws,
    Population,
    choices,
    simulate,
)
from laboratory.evaluation.labelled_scenes import write_labelled_scenes
from laboratory.evaluation.service_process import service_process
from loadtest.figures import table

MODELS = ("florence-2-mini", "paligemma-mini")
BOTH = "both"
TASKS = (
    "object_detection",
    "open_vocabulary_detection",
    "phrase_grounding",
    "instance_segmentation",
    "ocr",
    "ocr_with_regions",
    "visual_question_answering",
)
_PHRASE_TASKS = ("phrase_grounding", "instance_segmentation")
_DRAWN = "open_vocabulary_detection"
_NUM_DRAWN = 100
_SHARES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15)
_FIRST_SCENE = 200_000  # others measure and fit calibrations
_CLIENTS = 4


def _write_shapes(folder: Path, condition: str, num_scenes: int) -> None:
    scenes = range(_FIRST_SCENE, _FIRST_SCENE + num_scenes)
    write_labelled_scenes(folder, CONDITIONS[condition], scenes)


@dataclass(frozen=True, slots=True)
class Asked:
    """The models of a simulation, what they are asked, and about which scenes."""

    models: Sequence[str] = MODELS
    tasks: Sequence[str] = TASKS
    conditions: Sequence[str] = ("plain", "40px", "22px")
    # number of scenes under a condition, written into a folder
    write: Callable[[Path, str, int], None] = _write_shapes


_POPULATIONS = {"plain": ("plain",), "40px": ("40px",), "mixed": Asked().conditions}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate with scenes of shapes."""
    parser = guarantee_parser("python -m laboratory.evaluation.guarantees", __doc__ or "")
    run(parser.parse_args(arguments), Asked(), _POPULATIONS)


def run(parsed: argparse.Namespace, asked: Asked, populations: Mapping[str, Sequence[str]]) -> None:
    """Collect the answers that are not there, simulate and print a table.

    `populations` are conditions whose scenes are taken together; the picture shows the last one.
    """
    with TemporaryDirectory() as temporary:
        folder = parsed.answers or Path(temporary)
        collect(folder, parsed.scenes, asked)
        judged = _judged_answers(folder, asked, populations)
        _simulate(judged, (_DRAWN, [*populations][-1]), parsed)


def collect(folder: Path, num_scenes: int, asked: Asked) -> None:
    """Render the scenes and ask the models; a complete folder is read again."""
    done = folder / "complete"
    if done.exists():
        return
    for name in asked.conditions:
        if not (folder / name).exists():
            asked.write(folder / name, name, num_scenes)
    diptych = Path(sys.executable).with_name("diptych")
    with service_process(_CLIENTS, DIPTYCH_MODELS=",".join(asked.models)) as client:
        for model, task, name in product(asked.models, asked.tasks, asked.conditions):
            if task in offered_tasks(client, model):
                out = folder / f"{name}-{task}-{model}"
                data = labels_of(folder / name, task)
                words = ("--task", task, "--models", model, "--gallery", "0", "--out", out)
                command = (diptych, "--url", str(client.base_url), "evaluate", data, *words)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    done.touch()


def labels_of(folder: Path, task: str) -> Path:
    """Return what names the labels of a task: a file of scenes of shapes, or a folder with COCO."""
    if (folder / "annotations.json").exists():
        return folder
    return folder / ("phrases.jsonl" if task in _PHRASE_TASKS else "labels.jsonl")


def read_judged(
    labelled: Sequence[LabelledImage], answers: Sequence[Path], task: str
) -> list[Judged]:
    """Return the labels of each image that one model gives, or two that agree.

    `answers` are the files of `diptych evaluate`; the questions about an image are one unit.
    """
    records: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    images = {each.image.name: each for each in labelled}
    for path in answers:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            asked = json.dumps(row["parameters"])
            record = Record(images[row["image"]].image, answer_from_json(row["answer"]))
            records[row["image"], asked].append(record)
    found: defaultdict[str, list[Judged]] = defaultdict(list)
    for (name, asked), own in records.items():
        job = Job(task, own[0].answer.model, TaskParameters(**json.loads(asked)), AnswerOptions())
        truth = truth_of(images[name], job)
        if truth is not None and len(own) == len(answers):
            found[name].append(judge(own, truth, Tolerance()))
    joined = []
    for name in sorted(found):  # answers are in any order, and draws are by number
        parts = found[name]
        confidences = chain.from_iterable(each.confidences for each in parts)
        is_right = chain.from_iterable(each.is_right for each in parts)
        found_scores = chain.from_iterable(each.found_scores for each in parts)
        joined.append(Judged(tuple(confidences), tuple(is_right), tuple(found_scores)))
    return joined


def _judged_answers(
    folder: Path, asked: Asked, populations: Mapping[str, Sequence[str]]
) -> Iterator[tuple[tuple[str, str, str], Population]]:
    """Yield task, scenes and model with the judged answers; not every model offers every task."""
    choices_of_models = (*((model,) for model in asked.models), asked.models)
    for task, (name, conditions), models in product(
        asked.tasks, populations.items(), choices_of_models
    ):
        judged: list[Judged] = []
        for condition in conditions:
            files = [folder / f"{condition}-{task}-{each}" / "answers.jsonl" for each in models]
            if all(file.exists() for file in files):
                dataset = read_dataset(labels_of(folder / condition, task))
                judged += read_judged(dataset.images, files, task)
        if judged:
            yield (task, name, models[0] if len(models) == 1 else BOTH), Population(judged)


def _simulate(
    judged: Iterable[tuple[tuple[str, str, str], Population]],
    shown: tuple[str, str],
    parsed: argparse.Namespace,
) -> None:
    """Print a row for each population; `shown`, task and scenes, are those of the picture."""
    promise = Promise(parsed.max_wrong, parsed.confidence)
    draws = Draws(parsed.draws, parsed.labelled)
    rows = []
    drawn: dict[str, Population] = {}
    for (task, scenes, model), population in judged:
        rows.append([task, scenes, model, *_figures(population, promise, draws)])
        if (task, scenes) == shown:
            drawn[model] = population
    print(table(_HEADER, rows))
    if parsed.picture is not None:
        draw_coverage(
            parsed.picture, drawn, replace(draws, num_draws=_NUM_DRAWN), parsed.confidence
        )


_HEADER = [
    "task",
    "scenes",
    "model",
    "labels",
    "wrong",
    "found",
    "broken",
    "chosen",
    "coverage",
    "best possible",
    "broken by precision seen",
    "broken by score ≥ 0.95",
]


def _figures(population: Population, promise: Promise, draws: Draws) -> list[str]:
    proved, *naive = simulate(population, choices(promise), promise.max_share, draws).values()
    low, high = proved.broken_interval()
    return [
        str(len(population.is_right)),
        f"{1 - population.is_right.mean():.3f}",
        f"{population.share_found:.3f}" if population.num_objects else "",
        f"{proved.num_broken / proved.num_draws:.3f} [{low:.3f}, {high:.3f}]",
        f"{proved.num_chosen / proved.num_draws:.2f}",
        f"{proved.coverage:.2f}",
        f"{population.best_coverage(promise.max_share):.2f}",
        *(f"{each.num_broken / each.num_draws:.2f}" for each in naive),
    ]


def draw_coverage(
    file: Path, populations: Mapping[str, Population], draws: Draws, confidence: float
) -> None:
    """Draw the mean coverage of each population against the promised share, dotted the best one."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, population) in enumerate(populations.items()):
        coverages = []
        best = []
        for share in _SHARES:
            proved = {"proved": choices(Promise(share, confidence))["proved"]}
            coverages.append(simulate(population, proved, share, draws)["proved"].coverage)
            best.append(population.best_coverage(share))
        percent = [100 * share for share in _SHARES]
        axes.plot(percent, coverages, "o-", color=f"C{number}", label=name)
        axes.plot(percent, best, ":", color=f"C{number}")
    axes.set_xlabel("promised: at most so many % of the accepted labels are wrong")
    axes.set_ylabel("coverage")
    axes.legend()
    figure.savefig(file, dpi=100)


def guarantee_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """Return a parser of the options of a simulation."""
    parser = argparse.ArgumentParser(name, description=documentation.partition("\n")[0])
    add = parser.add_argument
    default = "default: %(default)s"
    add("--scenes", type=int, default=300, metavar="N", help=f"of each condition; {default}")
    add("--draws", type=int, default=1000, metavar="N", help=default)
    add("--labelled", type=int, default=200, metavar="N", help=f"images of a draw; {default}")
    add("--max-wrong", type=float, default=0.05, metavar="SHARE", help=default)
    add("--confidence", type=float, default=0.95, metavar="SHARE", help=default)
    add("--picture", type=Path, metavar="FILE", help="draw coverage against guarantee here")
    add("--answers", type=Path, metavar="D", help="keep the answers here, or read them again")
    return parser


if __name__ == "__main__":
    main()
