"""The command `annotate`: the parts of `client/annotate`, with a progress bar and a summary."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from client.annotate import (
    AnnotationError,
    DatasetFormat,
    Failures,
    Job,
    Journal,
    Labeller,
    check_format,
    find_images,
    label_images,
    separate_folders,
    write_dataset,
)
from client.annotate.images import ImageFile
from client.cli.asked import Asked
from client.cli.service import Service

_ERRORS = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class FolderCall:
    """What `annotate` was called with."""

    folder: Path
    out: Path
    dataset_format: DatasetFormat
    asked: Asked
    model: str | None
    concurrency: int


class _RateColumn(ProgressColumn):
    """Images a second of this run."""

    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def annotate_folder(service: Service, call: FolderCall) -> int:
    """Label the folder, write the dataset and a summary; return the number of images that got no answer."""
    separate_folders(call.folder, call.out)
    images = find_images(call.folder)
    job = _job(service, call, images)
    with Journal.open(call.out / "journal.jsonl", job) as journal:
        waiting = [image for image in images if not journal.has(image)]
        with Failures(call.out / "failures.jsonl") as failures:
            _label(service, Labeller(call.folder, job, journal, failures), waiting, call.concurrency)
        records = [journal.records[image.name] for image in images if journal.has(image)]
    dataset = write_dataset(call.dataset_format, call.out, call.folder, records, job)
    typer.echo(f"{len(records)} of {len(images)} images are in {dataset}")
    return failures.count


def _job(service: Service, call: FolderCall, images: Sequence[ImageFile]) -> Job:
    """Return what is asked, with a model by name: a journal is of one, whatever the service's default becomes."""
    if not images:
        raise AnnotationError(f"{call.folder} has no JPEG, PNG or WebP file")
    with service.client() as client:
        tasks = {task.id: task for task in client.tasks() if task.models}
    if call.asked.task not in tasks:
        raise AnnotationError(f"task {call.asked.task!r} is not offered; there are {', '.join(tasks)}")
    task = tasks[call.asked.task]
    check_format(call.dataset_format, task.result, images)
    return Job(task.id, call.model or task.models[0], call.asked.parameters(), call.asked.options())


def _label(service: Service, labeller: Labeller, waiting: Sequence[ImageFile], concurrency: int) -> None:
    """Label what waits, show how it goes on, and say how it went."""
    start_s = time.monotonic()
    with Progress(BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn(), console=_ERRORS) as progress:
        bar = progress.add_task("", total=len(waiting))

        async def run() -> None:
            async with service.async_client() as client:
                await label_images(client, labeller, waiting, concurrency, lambda: progress.advance(bar))

        try:
            asyncio.run(run())
        except KeyboardInterrupt:
            _ERRORS.print("interrupted; the same command goes on from here")
            raise
    elapsed_s, failures = time.monotonic() - start_s, labeller.failures
    rate = f"{len(waiting)} images in {elapsed_s:.1f} s, {len(waiting) / elapsed_s:.1f} images/s"
    typer.echo(f"{rate}; {failures.count} failed" + (f", see {failures.path}" if failures.count else ""))
