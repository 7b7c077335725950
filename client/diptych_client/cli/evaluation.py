"""The command `evaluate`: asks the models with a progress bar, writes the report, prints what it
says.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych_client.annotate import check_folders
from diptych_client.cli.options import ConnectionOptions, TaskOptions
from diptych_client.cli.progress import run_with_progress
from diptych_client.cli.terminal import echo
from diptych_client.evaluation.answers import AnswerLog, Asker
from diptych_client.evaluation.calibration import already_calibrated, fit, write_calibrations
from diptych_client.evaluation.metrics.evaluator import Evaluation, Evaluator, sampled
from diptych_client.evaluation.questions import Prompts, Questionnaire, Sample, read_prompts
from diptych_client.evaluation.readers import read_dataset
from diptych_client.evaluation.report import (
    gallery_cards,
    html_page,
    json_document,
    markdown,
    sentences,
)
from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.long_runs import FailureLog, RunError
from diptych_client.results import Model


@dataclass(frozen=True, slots=True)
class EvaluateCommand:
    """Arguments of `evaluate`."""

    dataset: Path
    out: Path
    task_options: TaskOptions
    models: Sequence[str] | None
    images: Path | None
    split: str | None
    prompts: Path | None
    num_images: int | None
    concurrency: int
    gallery: int
    calibrate: Path | None

    @property
    def seed(self) -> int:
        return self.task_options.seed or 0


def evaluate_dataset(connection: ConnectionOptions, command: EvaluateCommand) -> int:
    """Ask, measure and report; return the number of failed requests."""
    if command.dataset.is_dir():
        check_folders(command.dataset, command.out)
    models = _models(connection, command)
    names = tuple(model.id for model in models)
    options = command.task_options
    dataset = sampled(
        read_dataset(command.dataset, command.images, command.split),
        command.num_images,
        command.seed,
    )
    prompts = Prompts() if command.prompts is None else read_prompts(command.prompts)
    questionnaire = Questionnaire(options.task, options.parameters(), prompts, dataset.classes)
    samples = list(questionnaire.samples(dataset))
    with AnswerLog.open(
        command.out / "answers.jsonl", options.task, options.answer_options()
    ) as log:
        with FailureLog(command.out / "failures.jsonl") as failures:
            asker = Asker(dataset.store, log, failures, command.concurrency)
            for name in names:
                _ask(connection, asker, samples, name)
        evaluator = Evaluator(log, names, questionnaire.names)
        evaluation = evaluator.evaluate(dataset.name, samples, command.seed, command.gallery)
        gallery = Gallery(dataset.store, log, questionnaire.names, names)
        _write(command.out, evaluation, gallery, samples)
    _print(command.out, evaluation, failures)
    if command.calibrate is not None:
        scored = {
            model: evaluator.measures[model.id].scored() if evaluator.measures else None
            for model in models
        }
        fitted = [
            fit(model.id, model.checkpoint, options.task, answers)
            for model, answers in scored.items()
        ]
        write_calibrations(command.calibrate, fitted)
        echo(f"the calibration is {command.calibrate}")
    return failures.num_failures


def _models(connection: ConnectionOptions, command: EvaluateCommand) -> tuple[Model, ...]:
    with connection.client() as client:
        tasks = {task.id: task.models for task in client.tasks() if task.models}
        served = {model.id: model for model in client.models()}
    task = command.task_options.task
    if task not in tasks:
        raise RunError(f"no model offers task {task!r}; offered are {', '.join(tasks)}")
    if missing := [model for model in command.models or () if model not in tasks[task]]:
        raise RunError(
            f"{', '.join(missing)} does not offer {task}; offered by {', '.join(tasks[task])}"
        )
    models = tuple(served[name] for name in dict.fromkeys(command.models or tasks[task]))
    if calibrated := [
        model.id for model in models if command.calibrate and task in model.calibrated_tasks
    ]:
        raise RunError(already_calibrated(", ".join(calibrated), task))
    return models


def _ask(
    connection: ConnectionOptions, asker: Asker, samples: Sequence[Sample], model: str
) -> None:
    total = sum(len(sample.requests) for sample in samples)
    num_unanswered = sum(1 for _ in asker.log.unanswered(samples, model))
    if num_unanswered < total:
        echo(
            f"{model}: {total - num_unanswered} of {total} requests were answered in an"
            " earlier run",
            is_error=True,
        )

    if not num_unanswered:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await asker.ask(client, samples, model, advance)

    run_with_progress(num_unanswered, run, model, "requests")


def _write(out: Path, evaluation: Evaluation, gallery: Gallery, samples: Sequence[Sample]) -> None:
    with (out / "report.html").open("w", encoding="utf-8") as file:
        html_page(evaluation, gallery_cards(gallery, samples, evaluation.gallery), file)
    (out / "report.md").write_text(markdown(evaluation), encoding="utf-8")
    titles = {each.sample_index: samples[each.sample_index].title for each in evaluation.gallery}
    document = json.dumps(json_document(evaluation, titles), indent=2)
    (out / "report.json").write_text(document + "\n", encoding="utf-8")


def _print(out: Path, evaluation: Evaluation, failures: FailureLog) -> None:
    for sentence in sentences(evaluation):
        echo(sentence)
    answered = (
        f"{evaluation.num_samples} samples of {evaluation.num_images} images answered by every"
        " model"
    )
    hint = (
        f"; {failures.num_failures} requests failed, see {failures.path}"
        if failures.num_failures
        else ""
    )
    echo(f"{answered}{hint}")
    echo(f"the report is {out / 'report.html'}")
