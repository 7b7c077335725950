"""The command `evaluate`: asks the models, writes the report and prints its conclusions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from diptych_client.annotate.job import check_folders
from diptych_client.cli.options import (
    ConnectionOptions,
    EvaluateOptions,
    InputOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.cli.terminal import echo, logger, note_problems, run_with_progress
from diptych_client.cli.views import table_view
from diptych_client.evaluation.answer_log import WITHOUT_TILES, AnswerLog, Asker
from diptych_client.evaluation.calibration import (
    already_calibrated,
    calibration_document,
    fit,
)
from diptych_client.evaluation.dataset import Dataset, LabelledImage
from diptych_client.evaluation.metrics.evaluator import Evaluation, Evaluator, sampled
from diptych_client.evaluation.metrics.race import Race, check_two, shuffled
from diptych_client.evaluation.questionnaire import Prompts, Questionnaire, Sample, read_prompts
from diptych_client.evaluation.readers import read_dataset
from diptych_client.evaluation.report import Gallery, report_files, sentences, write_report
from diptych_client.evaluation.report.tables import json_document, tables
from diptych_client.evaluation.run_record import Asked, run_record
from diptych_client.inputs import Opened, Problems, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError
from diptych_client.requests import given_fields
from diptych_client.results import Model


def evaluate_dataset(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    options: EvaluateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
) -> int:
    """Evaluate the models, write the report and return the number of failed requests."""
    out = output_folder(options.out, inputs, task_options.task)
    if Path(inputs[0]).is_dir():
        check_folders(Path(inputs[0]), out)
    with Outputs(out, input_options.overwrite) as outputs:
        outputs.check([*report_files(out), *filter(None, [options.calibrate])])
        return _evaluate(connection, inputs, options, input_options, task_options, outputs)


def _evaluate(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    options: EvaluateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    outputs: Outputs,
) -> int:
    task = task_options.task
    seed = task_options.seed or 0
    out = outputs.folder
    models = _models(connection, task, options)
    names = tuple(model.id for model in models)
    with_tiles = task_options.tiles not in (None, "off")
    if options.without_tiles:
        if not with_tiles:
            raise RunError("--without-tiles compares with tiles: give --tiles, such as auto")
        names += tuple(f"{name}{WITHOUT_TILES}" for name in names)
    opening = input_options.opening(out)
    dataset = _dataset(open_images(inputs, opening), options, opening.problems)
    named = " ".join(filter(None, (Path(inputs[0]).resolve().name, options.split)))
    dataset = sampled(replace(dataset, name=named), options.sample, seed)
    if options.until_decided:
        check_two(names)
        dataset = shuffled(dataset, seed)
    note_problems(opening.problems, outputs)
    if dataset.note:
        logger.warning(dataset.note)
    prompts = Prompts() if options.prompts is None else read_prompts(options.prompts)
    questionnaire = Questionnaire(task, task_options.parameters(), prompts, dataset.classes)
    samples = list(questionnaire.samples(dataset))
    with AnswerLog.open(out / "answers.jsonl", task, task_options.answer_options()) as log:
        with FailureLog(outputs.claim(out / "failures.jsonl")) as failures:
            asker = Asker(dataset.store, log, failures, options.concurrency)
            verdict = ""
            if options.until_decided:
                race = Race(asker, names, questionnaire.names, options.equal_within)
                samples, verdict = _race(connection, race, samples)
            else:
                for name in names:
                    _ask(connection, asker, samples, name)
        evaluator = Evaluator(log, names, questionnaire.names)
        found = evaluator.evaluate(dataset.name, samples, seed, options.gallery)
        asked = Asked(
            connection.url,
            given_fields(task_options.parameters(), task_options.answer_options()),
            {
                "prompts": str(options.prompts or ""),
                "split": options.split or "",
                "sample": options.sample or "",
                "decided": verdict,
            },
        )
        run = run_record(asked, models, samples, failures)
        run = replace(run, left_out=dict(opening.problems.counts))
        evaluation = replace(found, run=run)
        gallery = Gallery(dataset.store, log, questionnaire.names, names)
        write_report(outputs, evaluation, gallery, samples)
    if input_options.as_json:
        document = json_document(evaluation, {}) | {"report": str(out / "report.html")}
        document |= {"decided": verdict} if verdict else {}
        echo(json.dumps(document))
    else:
        if verdict:
            echo(verdict)
        _print(out, evaluation, failures)
    if options.calibrate is not None:
        fitted = []
        for model in models:
            scored = evaluator.measures[model.id].scored() if evaluator.measures else None
            fitted.append(fit(model.id, model.checkpoint, task, scored, with_tiles))
        outputs.write(options.calibrate, calibration_document(fitted))
        logger.info("the calibration is %s", options.calibrate)
    return failures.num_failures


def _dataset(opened: Opened, options: EvaluateOptions, problems: Problems) -> Dataset:
    if opened.chosen is None:
        return read_dataset(opened.path, options.images, options.split, problems)
    store, images = opened.images()
    return Dataset([LabelledImage(image) for image in images], store)


def _models(
    connection: ConnectionOptions, name: str, options: EvaluateOptions
) -> tuple[Model, ...]:
    with connection.client() as client:
        task = offered_task(client.tasks(), name)
        served = {model.id: model for model in client.models()}
    chosen = listed(options.models) or task.models
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
        logger.info("%s: %s", model, known)
    if not num_unanswered:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await asker.ask(client, samples, model, advance)

    run_with_progress(num_unanswered, run, model, "requests")


def _race(
    connection: ConnectionOptions, race: Race, samples: Sequence[Sample]
) -> tuple[list[Sample], str]:
    """Return the samples that were sent until one model is known to be better, and the verdict."""
    asked: list[Sample] = []

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            asked.extend(await race.run(client, samples, advance))

    total = 2 * sum(len(sample.requests) for sample in samples)
    run_with_progress(total, run, "until decided", "requests")
    num_all = len({sample.image.name for sample in samples})
    return asked, race.sentence(num_all)


def _print(out: Path, evaluation: Evaluation, failures: FailureLog) -> None:
    for sentence in sentences(evaluation):
        echo(sentence)
    if len(evaluation.models) == 1:
        for table in tables(evaluation):
            if table.title in ("Metrics", "AP by class"):
                Console().print(table_view(table.header, table.rows))
    count = f"{evaluation.num_samples} samples of {evaluation.num_images} images"
    hint = ""
    if failures.num_failures:
        hint = f"; {failures.num_failures} requests failed, see {failures.path}"
    echo(f"{count} answered by every model{hint}")
    echo(f"the report is {out / 'report.html'}")
