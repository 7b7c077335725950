"""Sends the images of a folder to the service, with a limited number of concurrent requests."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Journal, Record
from diptych_client.clients.async_client import AsyncClient
from diptych_client.inputs import ImageFile, NamedImage
from diptych_client.long_runs import FailureLog, send_all
from diptych_client.requests import read_image_file


@dataclass(frozen=True, slots=True)
class Labeller:
    """Labels images of a folder: answers go to the journal, errors to the failure log."""

    folder: Path
    job: Job
    journal: Journal
    failures: FailureLog


async def label_images(
    client: AsyncClient,
    labeller: Labeller,
    images: Iterable[ImageFile],
    concurrency: int,
    advance: Callable[[], None],
) -> None:
    """Label all images concurrently; raise the first error that affects every image."""
    job = labeller.job

    async def label(image: ImageFile) -> None:
        data = await asyncio.to_thread(read_image_file, labeller.folder / image.name)
        answer = await client.predict(
            NamedImage(image.name, data),
            job.task,
            job.parameters,
            model=job.model,
            options=job.options,
        )
        labeller.journal.append(Record(image, answer))
        advance()

    def record_failure(image: ImageFile, error: Exception) -> None:
        labeller.failures.append({"image": image.name, "model": job.model}, error)
        advance()

    await send_all(images, label, record_failure, concurrency)
