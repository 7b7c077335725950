"""Sends the images of a folder to the service, with a limited number of concurrent requests."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Journal, Record
from diptych_client.clients.async_client import AsyncClient
from diptych_client.inputs import ImageFile, ImageStore, NamedImage
from diptych_client.long_runs import FailureLog, send_all


@dataclass(frozen=True, slots=True)
class Labeller:
    """Labels images of a store: answers go to the journal, errors to the failure log."""

    store: ImageStore
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
        data = await asyncio.to_thread(labeller.store.read, image)
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
