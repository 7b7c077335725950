"""The command `annotate`: runs `diptych_client.annotate` with a progress bar and prints a summary."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from diptych_client.annotate import (
    DatasetFormat,
    Job,
    Journal,
    Labeller,
    check_folders,
    check_format,
    find_images,
    label_images,
    write_dataset,
)
from diptych_client.annotate.job import ImageFile
from diptych_client.cli.options import ConnectionOptions, TaskOptions
from diptych_client.cli.progress import run_with_progress
from diptych_client.long_runs import FailureLog, RunError


@dataclass(frozen=True, slots=True)
class AnnotateCommand:
    """Arguments of `annotate`."""

    folder: Path
    out: Path
    dataset_format: DatasetFormat
    task_options: TaskOptions
    model: str | None
    concurrency: int


def annotate_folder(connection: ConnectionOptions, command: AnnotateCommand) -> int:
    """Label the folder, write the dataset, print a summary; return the number of failed images."""
    check_folders(command.folder, command.out)
    images = find_images(command.folder)
    job = _job(connection, command, images)
    with Journal.open(command.out / "journal.jsonl", job) as journal:
        unlabelled = [image for image in images if not journal.has(image)]
        with FailureLog(command.out / "failures.jsonl") as failures:
            _label(connection, Labeller(command.folder, job, journal, failures), unlabelled, command.concurrency)
        records = [journal.records[image.name] for image in images if journal.has(image)]
    dataset = write_dataset(command.dataset_format, command.out, command.folder, records, job)
    typer.echo(f"{len(records)} of {len(images)} images are in {dataset}")
    return failures.num_failures


def _job(connection: ConnectionOptions, command: AnnotateCommand, images: Sequence[ImageFile]) -> Job:
    """Return the job with an explicit model: a resumed run keeps it even if the service's default changes."""
    if not images:
        raise RunError(f"{command.folder} contains no JPEG, PNG or WebP file")
    with connection.client() as client:
        tasks = {task.id: task for task in client.tasks() if task.models}
    options = command.task_options
    if options.task not in tasks:
        raise RunError(f"no model offers task {options.task!r}; offered are {', '.join(tasks)}")
    task = tasks[options.task]
    check_format(command.dataset_format, task.result, images)
    return Job(task.id, command.model or task.models[0], options.parameters(), options.answer_options())


def _label(connection: ConnectionOptions, labeller: Labeller, images: Sequence[ImageFile], concurrency: int) -> None:
    start_s = time.monotonic()

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await label_images(client, labeller, images, concurrency, advance)

    run_with_progress(len(images), run)
    elapsed_s, failures = time.monotonic() - start_s, labeller.failures
    summary = f"{len(images)} images in {elapsed_s:.1f} s, {len(images) / elapsed_s:.1f} images/s"
    hint = f", see {failures.path}" if failures.num_failures else ""
    typer.echo(f"{summary}; {failures.num_failures} failed{hint}")
