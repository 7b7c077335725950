"""The command `evaluate`: asks the models, writes the report and prints its conclusions."""

from collections.abc import Callable, Sequence
from pathlib import Path

from diptych_client.annotate.job import check_folders
from diptych_client.cli.options import ConnectionOptions, EvaluateOptions, TaskOptions, offered_task
from diptych_client.cli.terminal import echo, run_with_progress
from diptych_client.evaluation.answer_log import AnswerLog, Asker
from diptych_client.evaluation.calibration import already_calibrated, fit, write_calibrations
from diptych_client.evaluation.metrics.evaluator import Evaluation, Evaluator, sampled
from diptych_client.evaluation.questionnaire import Prompts, Questionnaire, Sample, read_prompts
from diptych_client.evaluation.readers import read_dataset
from diptych_client.evaluation.report import Gallery, sentences, write_report
from diptych_client.long_runs import FailureLog, RunError
from diptych_client.results import Model


def evaluate_dataset(
    connection: ConnectionOptions, path: Path, options: EvaluateOptions, task_options: TaskOptions
) -> int:
    """Evaluate the models, write the report and return the number of failed requests."""
    task = task_options.task
    seed = task_options.seed or 0
    out = options.out or path.resolve().with_name(f"{path.resolve().stem}-{task}")
    if path.is_dir():
        check_folders(path, out)
    models = _models(connection, task, options)
    names = tuple(model.id for model in models)
    dataset = sampled(read_dataset(path, options.images, options.split), options.sample, seed)
    prompts = Prompts() if options.prompts is None else read_prompts(options.prompts)
    questionnaire = Questionnaire(task, task_options.parameters(), prompts, dataset.classes)
    samples = list(questionnaire.samples(dataset))
    with AnswerLog.open(out / "answers.jsonl", task, task_options.answer_options()) as log:
        with FailureLog(out / "failures.jsonl") as failures:
            asker = Asker(dataset.store, log, failures, options.concurrency)
            for name in names:
                _ask(connection, asker, samples, name)
        evaluator = Evaluator(log, names, questionnaire.names)
        evaluation = evaluator.evaluate(dataset.name, samples, seed, options.gallery)
        gallery = Gallery(dataset.store, log, questionnaire.names, names)
        write_report(out, evaluation, gallery, samples)
    _print(out, evaluation, failures)
    if options.calibrate is not None:
        fitted = []
        for model in models:
            scored = evaluator.measures[model.id].scored() if evaluator.measures else None
            fitted.append(fit(model.id, model.checkpoint, task, scored))
        write_calibrations(options.calibrate, fitted)
        echo(f"the calibration is {options.calibrate}")
    return failures.num_failures


def _models(
    connection: ConnectionOptions, name: str, options: EvaluateOptions
) -> tuple[Model, ...]:
    with connection.client() as client:
        task = offered_task(client.tasks(), name)
        served = {model.id: model for model in client.models()}
    chosen = options.models or task.models
    if missing := [model for model in chosen if model not in task.models]:
        offered = ", ".join(task.models)
        raise RunError(f"{', '.join(missing)} does not offer {name}; offered by {offered}")
    models = tuple(served[model] for model in dict.fromkeys(chosen))
    calibrated = [model.id for model in models if name in model.calibrated_tasks]
    if options.calibrate and calibrated:
        raise RunError(already_calibrated(", ".join(calibrated), name))
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
