"""Sends the images of a folder to the service, with a limited number of concurrent requests."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from diptych_client.annotate.job import ImageFile, Job
from diptych_client.annotate.journal import Journal, Record
from diptych_client.client import AsyncClient
from diptych_client.errors import DiptychError, InvalidRequest, Unauthorized, UnknownModel, UnsupportedTask

_IMAGE_FIELDS = ("image", "region")  # errors of these fields depend on the image: a region may exceed a small one


class FailureLog:
    """A file with one line of JSON for each image that failed in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_failures = 0
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, image: ImageFile, error: DiptychError | OSError) -> None:
        if isinstance(error, DiptychError):
            detail = asdict(error.detail)
        else:
            detail = {"code": "unreadable_file", "message": str(error)}
        self._file.write(json.dumps({"image": image.name, **detail}) + "\n")
        self.num_failures += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Labeller:
    """Labels images of a folder: answers go to the journal, errors to the failure log."""

    folder: Path
    job: Job
    journal: Journal
    failures: FailureLog

    async def label(self, client: AsyncClient, queue: Iterator[ImageFile], advance: Callable[[], None]) -> None:
        """Label images of the queue one after another until it is empty."""
        for image in queue:
            try:
                record = await self._record(client, image)
            except (DiptychError, OSError) as error:
                if _affects_every_image(error):
                    raise
                self.failures.append(image, error)
            else:
                self.journal.append(record)
            advance()

    async def _record(self, client: AsyncClient, image: ImageFile) -> Record:
        data, job = await asyncio.to_thread((self.folder / image.name).read_bytes), self.job
        answer = await client.predict(data, job.task, job.parameters, model=job.model, options=job.options)
        return Record(image, answer)


async def label_images(
    client: AsyncClient,
    labeller: Labeller,
    images: Iterable[ImageFile],
    concurrency: int,
    advance: Callable[[], None],
) -> None:
    """Label all images with `concurrency` requests in flight; raise the first error that affects every image."""
    queue = iter(images)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(labeller.label(client, queue, advance))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _affects_every_image(error: DiptychError | OSError) -> bool:
    if isinstance(error, InvalidRequest):
        return error.param not in _IMAGE_FIELDS
    return isinstance(error, Unauthorized | UnknownModel | UnsupportedTask)
