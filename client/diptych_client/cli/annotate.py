"""The command `annotate`: labels a folder with one model, or two that must agree."""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from diptych_client.cli.options import (
    NO_GUARANTEE,
    AnnotateOptions,
    ConnectionOptions,
    GuaranteeOptions,
    InputOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.cli.terminal import echo, logger, note_problems, run_with_progress
from diptych_client.evaluation.annotation.consensus import (
    AgreementRule,
    Records,
    agree,
    write_consensus,
)
from diptych_client.evaluation.formats.writing import (
    check_consensus,
    check_format,
    check_guarantee,
    check_outputs,
    write_dataset,
)
from diptych_client.evaluation.job import Job, Journal, Labeller, Record, check_folders
from diptych_client.inputs import Folder, ImageFile, ImageStore, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9.-]{,199}")  # model ids of the service's catalog


@dataclass(frozen=True, slots=True)
class _Answering:
    """Sends images to the model of each job, and stores the answers in a journal of each."""

    connection: ConnectionOptions
    jobs: Sequence[Job]
    failures: FailureLog
    concurrency: int

    def answers(self, out: Path, store: ImageStore, images: Sequence[ImageFile]) -> list[Records]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        by_name: dict[str, list[Record]] = {image.name: [] for image in images}
        for job in self.jobs:
            name = f"journal-{job.model}.jsonl" if len(self.jobs) > 1 else "journal.jsonl"
            with Journal.open(out / name, job) as journal:
                unlabelled = [image for image in images if not journal.has(image)]
                if unlabelled:
                    self._label(Labeller(store, job, journal, self.failures), unlabelled)
                for image in images:
                    if journal.has(image):
                        by_name[image.name].append(journal.records[image.name])
        complete = [records for records in by_name.values() if len(records) == len(self.jobs)]
        return list(map(tuple, complete))

    def _label(self, labeller: Labeller, images: Sequence[ImageFile]) -> None:
        num_earlier = self.failures.num_failures

        async def run(advance: Callable[[], None]) -> None:
            async with self.connection.async_client() as client:
                await labeller.label(client, images, self.concurrency, advance)

        start_s = time.monotonic()
        run_with_progress(len(images), run)
        elapsed_s = time.monotonic() - start_s
        num_failed = self.failures.num_failures - num_earlier
        rate = f"{len(images)} images in {elapsed_s:.1f} s, {len(images) / elapsed_s:.1f} images/s"
        hint = f", see {self.failures.path}" if num_failed else ""
        logger.info("%s; %d failed%s", rate, num_failed, hint)


def annotate_images(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    options: AnnotateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    guarantee: GuaranteeOptions = NO_GUARANTEE,
) -> int:
    """Label the images and write the dataset; return the number of failed requests."""
    _check_options(options, task_options, guarantee)
    out = output_folder(options.out, inputs, "annotations")
    opening = input_options.opening(out)
    opened = open_images(inputs, opening)
    if Path(inputs[0]).is_dir():
        check_folders(opened.path, out)
    store, images = opened.images()
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(out, input_options.overwrite))
        check_outputs(outputs, store.path, images)
        outputs.check(filter(None, [guarantee.thresholds]))
        note_problems(opening.problems, outputs)
        jobs = _jobs(connection, options, task_options, images, guarantee)
        out.mkdir(parents=True, exist_ok=True)
        failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
        answering = _Answering(connection, jobs, failures, options.concurrency)
        if guarantee.labelled is None:
            answers = answering.answers(out, store, images)
            dataset, notes = _write(options, outputs, store.path, answers, jobs[0])
        else:
            answers, dataset, notes = _label_with_guarantee(
                answering, outputs, store, images, options, guarantee
            )
    notes.append(f"{len(answers)} of {len(images)} images are in {dataset}")
    summary = {
        "dataset": str(dataset),
        "images": len(images),
        "labelled": len(answers),
        "failed": failures.num_failures,
        "left_out": dict(opening.problems.counts),
    }
    echo(json.dumps(summary) if input_options.as_json else "\n".join(notes))
    return failures.num_failures


def _check_options(
    options: AnnotateOptions, task_options: TaskOptions, guarantee: GuaranteeOptions
) -> None:
    if guarantee.labelled is None:
        if replace(guarantee, confidence=NO_GUARANTEE.confidence) != NO_GUARANTEE:
            names = "--max-wrong, --max-missed, --thresholds, --suggest and --reviewed"
            raise RunError(f"{names} need --labelled: images with true labels")
        return
    if options.accept_score or task_options.min_precision:
        hint = "omit --accept-score and --min-precision"
        raise RunError(f"--labelled chooses the least score itself: {hint}")
    if guarantee.thresholds is not None and options.consensus:
        raise RunError("--thresholds is of one model, which the service asks: omit --consensus")


def _label_with_guarantee(
    answering: _Answering,
    outputs: Outputs,
    store: Folder,
    images: Sequence[ImageFile],
    options: AnnotateOptions,
    guarantee: GuaranteeOptions,
) -> tuple[list[Records], Path, list[str]]:
    try:
        from diptych_client.cli.guaranteed import GuaranteedRun, promises_of
    except ImportError as error:
        needed = f"{error.name}: pip install 'diptych-client[evaluate]'"
        raise RunError(f"annotate --labelled needs {needed}") from error
    promises = promises_of(guarantee, options.iou)
    job = answering.jobs[0]
    run = GuaranteedRun(answering.answers, outputs, store, images, job, promises)
    answers, dataset = run.label(guarantee, options.dataset_format, answering.connection.models)
    return answers, dataset, run.sentences


def _write(
    options: AnnotateOptions,
    outputs: Outputs,
    folder: Path,
    answers: Sequence[Records],
    job: Job,
) -> tuple[Path, list[str]]:
    if not options.consensus:
        records = [records[0] for records in answers]
        return write_dataset(options.dataset_format, outputs, folder, records, job), []
    rule = AgreementRule(options.iou, options.accept_score)
    agreements = [agree(first, second, rule) for first, second in answers]
    num_differing = sum(bool(image.differing) for image in agreements)
    note = f"{num_differing} images have boxes to review, see {outputs.folder / 'review.json'}"
    return write_consensus(options.dataset_format, outputs, folder, agreements, job), [note]


def _jobs(
    connection: ConnectionOptions,
    options: AnnotateOptions,
    task_options: TaskOptions,
    images: Sequence[ImageFile],
    guarantee: GuaranteeOptions,
) -> list[Job]:
    """Return a job for each model by its id: the service's default may change between runs.

    Raise `RunError` for a model id that would lead out of the folder as a journal's name.
    """
    with connection.client() as client:
        task = offered_task(client.tasks(), task_options.task)
    check_format(options.dataset_format, task.result, images)
    num_models = 2 if options.consensus else 1
    models = dict.fromkeys(listed(options.model) or task.models[:num_models])
    if guarantee.labelled is not None:
        check_guarantee(options.dataset_format, task.result, guarantee.thresholds is not None)
    elif options.consensus:
        check_consensus(options.dataset_format, task.result)
    if len(models) != num_models:
        rule = "two models with --consensus, else one"
        given = f"{task.id} would be answered by {', '.join(models)}"
        raise RunError(f"--model must name {rule}; {given}")
    jobs = []
    for model in models:
        if options.consensus and not _MODEL_ID.fullmatch(model):
            allowed = "lower-case letters, digits, dots and hyphens, at most 200"
            raise RunError(
                f"the model id {model!r:.200} cannot name a journal; it must have {allowed}, and"
                " begin with a letter or digit"
            )
        jobs.append(Job(task.id, model, task_options.parameters(), task_options.answer_options()))
    return jobs
