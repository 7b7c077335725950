"""The command `annotate`: runs `diptych_client.annotate` and prints a summary."""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from diptych_client.annotate.consensus import AgreementRule, agree, write_consensus
from diptych_client.annotate.dataset_files import (
    check_consensus,
    check_format,
    check_guarantee,
    check_outputs,
    write_dataset,
)
from diptych_client.annotate.job import Job, check_folders
from diptych_client.annotate.journal import Journal, Record
from diptych_client.annotate.labelling import Labeller, label_images
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
from diptych_client.inputs import ImageFile, ImageStore, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9.-]{,199}")  # model ids of the service's catalog


@dataclass(frozen=True, slots=True)
class _Answering:
    """Sends images to the model of each job, and keeps the answers in a journal of each."""

    connection: ConnectionOptions
    jobs: Sequence[Job]
    failures: FailureLog
    concurrency: int

    def answers(
        self, out: Path, store: ImageStore, images: Sequence[ImageFile]
    ) -> list[tuple[Record, ...]]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        found: list[dict[str, Record]] = []
        for job in self.jobs:
            name = f"journal-{job.model}.jsonl" if len(self.jobs) > 1 else "journal.jsonl"
            with Journal.open(out / name, job) as journal:
                labeller = Labeller(store, job, journal, self.failures)
                unlabelled = [image for image in images if not journal.has(image)]
                if unlabelled:
                    _label(self.connection, labeller, unlabelled, self.concurrency)
                answered = [image.name for image in images if journal.has(image)]
                found.append({name: journal.records[name] for name in answered})
        records = []
        for image in images:
            own = [each[image.name] for each in found if image.name in each]
            if len(own) == len(self.jobs):
                records.append(tuple(own))
        return records


def annotate_images(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    options: AnnotateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
    guarantee: GuaranteeOptions = NO_GUARANTEE,
) -> int:
    """Label the images and write the dataset; return the number of failed requests."""
    _check_guarantee(options, task_options, guarantee)
    out = output_folder(options.out, inputs, "annotations")
    opening = input_options.opening(out)
    opened = open_images(inputs, opening)
    if Path(inputs[0]).is_dir():
        check_folders(opened.path, out)
    store, images = opened.images()
    with ExitStack() as stack:
        outputs = stack.enter_context(Outputs(out, input_options.overwrite))
        check_outputs(outputs, store.path, images)
        if guarantee.thresholds is not None:
            outputs.check([guarantee.thresholds])
        note_problems(opening.problems, outputs)
        jobs = _jobs(connection, options, task_options, images, guarantee)
        out.mkdir(parents=True, exist_ok=True)
        failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
        answering = _Answering(connection, jobs, failures, options.concurrency)
        if guarantee.labelled is None:
            answers = answering.answers(out, store, images)
            dataset, notes = _write(options, outputs, store.path, answers, jobs[0])
        else:
            try:
                from diptych_client.cli.guaranteed import annotate_with_guarantee
            except ImportError as error:
                needed = f"{error.name}: pip install 'diptych-client[evaluate]'"
                raise RunError(f"annotate --labelled needs {needed}") from error
            place = (answering.answers, outputs, store, images)
            given = (options, guarantee, jobs[0], connection.models)
            answers, dataset, notes = annotate_with_guarantee(*place, *given)
    notes.append(f"{len(answers)} of {len(images)} images are in {dataset}")
    result = {"dataset": str(dataset), "images": len(images), "labelled": len(answers)}
    counts = {"failed": failures.num_failures, "left_out": dict(opening.problems.counts)}
    echo(json.dumps(result | counts) if input_options.as_json else "\n".join(notes))
    return failures.num_failures


def _check_guarantee(
    options: AnnotateOptions, task_options: TaskOptions, given: GuaranteeOptions
) -> None:
    """Raise `RunError` for options that exclude each other."""
    if given.labelled is None and replace(given, confidence=0.95) != NO_GUARANTEE:
        names = "--max-wrong, --max-missed, --thresholds, --suggest and --reviewed"
        raise RunError(f"{names} need --labelled: images with true labels")
    if given.labelled is not None and (options.accept_score or task_options.min_precision):
        omitted = "omit --accept-score and --min-precision"
        raise RunError(f"--labelled chooses the least score itself: {omitted}")
    if given.thresholds is not None and options.consensus:
        raise RunError("--thresholds is of one model, which the service asks: omit --consensus")


def _write(
    options: AnnotateOptions,
    outputs: Outputs,
    folder: Path,
    answers: Sequence[tuple[Record, ...]],
    job: Job,
) -> tuple[Path, list[str]]:
    """Write the dataset; return its path and what to say about it."""
    place = (options.dataset_format, outputs, folder)
    if not options.consensus:
        return write_dataset(*place, [records[0] for records in answers], job), []
    rule = AgreementRule(options.iou, options.accept_score)
    agreements = [agree(first, second, rule) for first, second in answers]
    num_differing = sum(bool(each.differing) for each in agreements)
    note = f"{num_differing} images have boxes to review, see {outputs.folder / 'review.json'}"
    return write_consensus(*place, agreements, job), [note]


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
        needed = "two models with --consensus, else one"
        answered = f"{task.id} would be answered by {', '.join(models)}"
        raise RunError(f"--model must name {needed}; {answered}")
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


def _label(
    connection: ConnectionOptions, labeller: Labeller, images: Sequence[ImageFile], concurrency: int
) -> None:
    start_s = time.monotonic()
    num_failed = labeller.failures.num_failures

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await label_images(client, labeller, images, concurrency, advance)

    run_with_progress(len(images), run)
    elapsed_s = time.monotonic() - start_s
    num_failed = labeller.failures.num_failures - num_failed
    summary = f"{len(images)} images in {elapsed_s:.1f} s, {len(images) / elapsed_s:.1f} images/s"
    hint = f", see {labeller.failures.path}" if num_failed else ""
    logger.info("%s; %d failed%s", summary, num_failed, hint)
