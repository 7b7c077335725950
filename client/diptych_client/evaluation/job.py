r"""A labelling job: a task, its parameters and one model; and its journal.

    {"job": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

The journal has a line of JSON for each image, appended when it is answered. A killed process leaves
at most one incomplete last line; only its image is requested again.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from diptych_client.clients.async_client import AsyncClient
from diptych_client.inputs import ImageFile, ImageStore, NamedImage
from diptych_client.long_runs import AppendLog, FailureLog, RunError, send_all
from diptych_client.requests import AnswerOptions, TaskParameters, non_null_fields
from diptych_client.results import (
    UNNAMED,
    Answer,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
)
from diptych_client.transports.rest_messages import answer_from_json, answer_json

Box = Detection | Instance


@dataclass(frozen=True, slots=True)
class Job:
    """A task, its parameters, and one model."""

    task: str
    model: str
    parameters: TaskParameters
    options: AnswerOptions

    def fields(self) -> dict[str, object]:
        request_fields = non_null_fields(self.parameters, self.options)
        text = json.dumps({"task": self.task, "model": self.model, **request_fields})
        fields: dict[str, object] = json.loads(text)
        return fields

    def requested_labels(self) -> tuple[str, ...]:
        """Return the labels or phrases of the job, the first classes of its dataset."""
        return tuple(self.parameters.labels or self.parameters.phrases or ())


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its answer."""

    image: ImageFile
    answer: Answer

    @property
    def boxes(self) -> tuple[Box, ...]:
        match self.answer.result:
            case DetectionsResult(boxes) | InstancesResult(boxes):
                return boxes
        raise ValueError(f"{type(self.answer.result).__name__} has no boxes")


def class_name(box: Box) -> str:
    return box.label or UNNAMED


def check_folders(images: Path, out: Path) -> None:
    """Raise `RunError` if one folder contains the other: output would mix with images."""
    source = images.resolve()
    target = out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        rule = f"must be outside the image folder {images}, and must not contain it"
        raise RunError(f"--out {out} {rule}")


class Journal:
    """The records of a job by image name; all are in memory."""

    def __init__(self, log: AppendLog, job: Job) -> None:
        """Read the records, or write the job; raise `RunError` for a journal of another job."""
        self.records: dict[str, Record] = {}
        self._log = log
        lines = (line for _, line in log.values())
        header = next(lines, None)
        if header is None:
            log.append({"job": job.fields()})
        elif header.get("job") != job.fields():
            recorded = json.dumps(header.get("job"))
            given = json.dumps(job.fields())
            raise RunError(
                f"{log.path} belongs to another job: recorded {recorded}, given {given}; "
                "repeat the recorded parameters, choose another --out, or delete the journal"
            )
        for line in lines:
            image = ImageFile(**line["image"])
            self.records[image.name] = Record(image, answer_from_json(line["answer"]))

    @classmethod
    @contextmanager
    def open(cls, path: Path, job: Job) -> Iterator[Self]:
        with AppendLog.open(path, "job") as log:
            yield cls(log, job)

    def has(self, image: ImageFile) -> bool:
        """Return True if the journal has an answer to this image in its current state."""
        record = self.records.get(image.name)
        return record is not None and record.image == image

    def append(self, record: Record) -> None:
        self._log.append({"image": asdict(record.image), "answer": answer_json(record.answer)})
        self.records[record.image.name] = record


@dataclass(frozen=True, slots=True)
class Labeller:
    """Sends images of a store: answers go to the journal, errors to the failure log."""

    store: ImageStore
    job: Job
    journal: Journal
    failures: FailureLog

    async def label(
        self,
        client: AsyncClient,
        images: Iterable[ImageFile],
        concurrency: int,
        advance: Callable[[], None],
    ) -> None:
        """Label all images concurrently; raise the first error that affects every image."""
        job = self.job

        async def send(image: ImageFile) -> None:
            data = await asyncio.to_thread(self.store.read, image)
            named = NamedImage(image.name, data)
            answer = await client.predict(
                named, job.task, job.parameters, model=job.model, options=job.options
            )
            self.journal.append(Record(image, answer))
            advance()

        def record_failure(image: ImageFile, error: Exception) -> None:
            self.failures.append({"image": image.name, "model": job.model}, error)
            advance()

        await send_all(images, send, record_failure, concurrency)
