"""The command `annotate`: runs `diptych_client.annotate` and prints a summary."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from diptych_client.annotate import (
    AgreementRule,
    DatasetFormat,
    Job,
    Journal,
    Labeller,
    agree,
    check_consensus,
    check_folders,
    check_format,
    find_images,
    label_images,
    write_consensus,
    write_dataset,
)
from diptych_client.annotate.job import ImageFile
from diptych_client.cli.options import ConnectionOptions, TaskOptions, offered_task
from diptych_client.cli.progress import run_with_progress
from diptych_client.cli.terminal import echo
from diptych_client.long_runs import FailureLog, RunError

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9.-]{,199}")  # of the service's catalog


@dataclass(frozen=True, slots=True)
class AnnotateCommand:
    """Arguments of `annotate`."""

    folder: Path
    out: Path
    dataset_format: DatasetFormat
    task_options: TaskOptions
    models: tuple[str, ...]  # empty: the service's default
    consensus: AgreementRule | None  # of two models; None: one model labels
    concurrency: int


def annotate_folder(connection: ConnectionOptions, command: AnnotateCommand) -> int:
    """Label the folder, write the dataset, print a summary.

    Return the number of failed requests.
    """
    check_folders(command.folder, command.out)
    images = find_images(command.folder)
    jobs = _jobs(connection, command, images)
    with ExitStack() as stack:
        journals = []
        for job in jobs:
            name = _journal_name(command, job)
            journals.append(stack.enter_context(Journal.open(command.out / name, job)))
        failures = stack.enter_context(FailureLog(command.out / "failures.jsonl"))
        for job, journal in zip(jobs, journals, strict=True):
            labeller = Labeller(command.folder, job, journal, failures)
            unlabelled = [image for image in images if not journal.has(image)]
            _label(connection, labeller, unlabelled, command.concurrency)
    labelled = images
    for journal in journals:
        labelled = [image for image in labelled if journal.has(image)]
    records = []
    for journal in journals:
        records.append([journal.records[image.name] for image in labelled])
    place = (command.dataset_format, command.out, command.folder)
    if command.consensus is None:
        dataset = write_dataset(*place, records[0], jobs[0])
    else:
        rule = command.consensus
        agreements = [agree(one, two, rule) for one, two in zip(*records, strict=True)]
        dataset = write_consensus(*place, agreements, jobs[0])
        num_differing = sum(bool(each.differing) for each in agreements)
        echo(f"{num_differing} images have boxes to review, see {command.out / 'review.json'}")
    echo(f"{len(labelled)} of {len(images)} images are in {dataset}")
    return failures.num_failures


def _journal_name(command: AnnotateCommand, job: Job) -> str:
    """Return the file name; raise `RunError` for a model id that would lead out of the folder."""
    if command.consensus is None:
        return "journal.jsonl"
    if not _MODEL_ID.fullmatch(job.model):
        allowed = (
            "lower-case letters, digits, dots and hyphens, at most 200, and begin with a letter or"
            " digit"
        )
        raise RunError(
            f"the model id {job.model!r:.200} cannot name a journal; it must have {allowed}"
        )
    return f"journal-{job.model}.jsonl"


def _jobs(
    connection: ConnectionOptions, command: AnnotateCommand, images: Sequence[ImageFile]
) -> list[Job]:
    """Return a job for each model, by its id: a resumed run keeps it even if the service's default
    changes.
    """
    if not images:
        raise RunError(f"{command.folder} contains no JPEG, PNG or WebP file")
    options = command.task_options
    with connection.client() as client:
        task = offered_task(client.tasks(), options.task)
    num_models = 1 if command.consensus is None else 2
    check_format(command.dataset_format, task.result, images)
    if command.consensus is not None:
        check_consensus(command.dataset_format, task.result)
    models = dict.fromkeys(command.models or task.models[:num_models])
    if len(models) != num_models:
        needed = "two models with --consensus, else one"
        raise RunError(
            f"--model must name {needed}; {task.id} would be answered by {', '.join(models)}"
        )
    return [Job(task.id, model, options.parameters(), options.answer_options()) for model in models]


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
    echo(f"{summary}; {num_failed} failed{hint}")
