"""The command `evaluate`: asks the models, writes the report and prints its conclusions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych_client.annotate import check_folders
from diptych_client.cli.options import ConnectionOptions, TaskOptions, offered_task
from diptych_client.cli.progress import run_with_progress
from diptych_client.cli.terminal import echo
from diptych_client.evaluation.answer_log import AnswerLog, Asker
from diptych_client.evaluation.calibration import already_calibrated, fit, write_calibrations
from diptych_client.evaluation.metrics.evaluator import Evaluation, Evaluator, sampled
from diptych_client.evaluation.questionnaire import Prompts, Questionnaire, Sample, read_prompts
from diptych_client.evaluation.readers import read_dataset
from diptych_client.evaluation.report import Gallery, sentences, write_report
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
    whole = read_dataset(command.dataset, command.images, command.split)
    dataset = sampled(whole, command.num_images, command.seed)
    prompts = Prompts() if command.prompts is None else read_prompts(command.prompts)
    questionnaire = Questionnaire(options.task, options.parameters(), prompts, dataset.classes)
    samples = list(questionnaire.samples(dataset))
    log_path = command.out / "answers.jsonl"
    with AnswerLog.open(log_path, options.task, options.answer_options()) as log:
        with FailureLog(command.out / "failures.jsonl") as failures:
            asker = Asker(dataset.store, log, failures, command.concurrency)
            for name in names:
                _ask(connection, asker, samples, name)
        evaluator = Evaluator(log, names, questionnaire.names)
        evaluation = evaluator.evaluate(dataset.name, samples, command.seed, command.gallery)
        gallery = Gallery(dataset.store, log, questionnaire.names, names)
        write_report(command.out, evaluation, gallery, samples)
    _print(command.out, evaluation, failures)
    if command.calibrate is not None:
        fitted = []
        for model in models:
            scored = evaluator.measures[model.id].scored() if evaluator.measures else None
            fitted.append(fit(model.id, model.checkpoint, options.task, scored))
        write_calibrations(command.calibrate, fitted)
        echo(f"the calibration is {command.calibrate}")
    return failures.num_failures


def _models(connection: ConnectionOptions, command: EvaluateCommand) -> tuple[Model, ...]:
    with connection.client() as client:
        task = offered_task(client.tasks(), command.task_options.task)
        served = {model.id: model for model in client.models()}
    chosen = command.models or task.models
    if missing := [name for name in chosen if name not in task.models]:
        raise RunError(
            f"{', '.join(missing)} does not offer {task.id}; offered by {', '.join(task.models)}"
        )
    models = tuple(served[name] for name in dict.fromkeys(chosen))
    calibrated = [model.id for model in models if task.id in model.calibrated_tasks]
    if command.calibrate and calibrated:
        raise RunError(already_calibrated(", ".join(calibrated), task.id))
    return models


def _ask(
    connection: ConnectionOptions, asker: Asker, samples: Sequence[Sample], model: str
) -> None:
    total = sum(len(sample.requests) for sample in samples)
    num_unanswered = sum(1 for _ in asker.log.unanswered(samples, model))
    if num_unanswered < total:
        known = f"{total - num_unanswered} of {total} requests were answered in an earlier run"
        echo(f"{model}: {known}", is_error=True)
    if not num_unanswered:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await asker.ask(client, samples, model, advance)

    run_with_progress(num_unanswered, run, model, "requests")


def _print(out: Path, evaluation: Evaluation, failures: FailureLog) -> None:
    for sentence in sentences(evaluation):
        echo(sentence)
    count = f"{evaluation.num_samples} samples of {evaluation.num_images} images"
    hint = ""
    if failures.num_failures:
        hint = f"; {failures.num_failures} requests failed, see {failures.path}"
    echo(f"{count} answered by every model{hint}")
    echo(f"the report is {out / 'report.html'}")
