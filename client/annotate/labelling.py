"""Asks a service about many images with a bounded number of requests at work."""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from client.annotate.images import ImageFile
from client.annotate.job import Job
from client.annotate.journal import Journal, Record
from client.async_client import AsyncClient
from client.errors import DiptychError, InvalidRequest, Unauthorized, UnknownModel, UnsupportedTask

_FIELDS_OF_AN_IMAGE = ("image", "region")  # a region may lie in one image and not in another


class Failures:
    """A file with one line of JSON for every image of this run that got no answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, image: ImageFile, error: DiptychError | OSError) -> None:
        """Write down why an image has no answer."""
        line = {"image": image.name, **_told(error)}
        self._file.write(json.dumps(line) + "\n")
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Labeller:
    """Asks about images of a folder and keeps what comes: answers in the journal, errors in the file of failures."""

    folder: Path
    job: Job
    journal: Journal
    failures: Failures

    async def label(self, client: AsyncClient, waiting: Iterator[ImageFile], advance: Callable[[], None]) -> None:
        """Label one image after the other until none waits."""
        for image in waiting:
            try:
                record = await self._record(client, image)
            except (DiptychError, OSError) as error:
                if _is_about_every_image(error):
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
    """Label all images, so many at a time; raise the first error that is not about one image alone."""
    waiting = iter(images)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(labeller.label(client, waiting, advance))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _told(error: DiptychError | OSError) -> dict[str, str | None]:
    if isinstance(error, DiptychError):
        return asdict(error.detail)
    return {"code": "unreadable_file", "message": str(error)}


def _is_about_every_image(error: DiptychError | OSError) -> bool:
    """Say whether the next image would end the same."""
    if isinstance(error, InvalidRequest):
        return error.param not in _FIELDS_OF_AN_IMAGE
    return isinstance(error, Unauthorized | UnknownModel | UnsupportedTask)
