r"""A labelling job: a task, its parameters and one model; and its journal.

    {"job": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

The journal has a line of JSON for each image, appended when it is answered. A killed process leaves
at most one incomplete last line; only its image is requested again.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diptych_client.clients.async_client import AsyncClient
from diptych_client.errors import DiptychError
from diptych_client.inputs import ImageFile, ImageInStore, ImageStore
from diptych_client.long_runs import AppendLog, FailureLog, RunError, send_all
from diptych_client.requests import DEFAULT_OPTIONS, AnswerOptions, TaskParameters, non_null_fields
from diptych_client.results import Answer, Detection, DetectionsResult, Instance, InstancesResult
from diptych_client.transports.messages import from_json, to_json

Box = Detection | Instance


@dataclass(frozen=True, slots=True)
class Job:
    """A task, its parameters, and one model."""

    task: str
    model: str
    parameters: TaskParameters
    options: AnswerOptions

    def fields(self) -> Any:
        """Return the fields of a request as values of JSON."""
        fields = non_null_fields(self.parameters, self.options)
        return json.loads(json.dumps({"task": self.task, "model": self.model, **fields}))

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
            requested = json.dumps(job.fields())
            raise RunError(
                f"{log.path} belongs to another job: recorded {recorded}, given {requested};"
                " repeat the recorded parameters, choose another --out, or delete the journal"
            )
        for line in lines:
            record = from_json(Record, line)
            self.records[record.image.name] = record

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
        self._log.append(to_json(record))
        self.records[record.image.name] = record


async def ask(
    client: AsyncClient,
    store: ImageStore,
    requests: Iterable[tuple[ImageFile, Job]],
    record: Callable[[ImageFile, Job, Answer, float], None],
    failures: FailureLog,
    concurrency: int,
    advance: Callable[[], None],
) -> None:
    """Record the answer to each request, and its latency, or the error in the failure log.

    Raise the first error that affects every image.
    """

    async def send(request: tuple[ImageFile, Job]) -> None:
        image, job = request
        source = ImageInStore(store, image)
        start_s = time.monotonic()
        answer = await client.predict(
            source, job.task, job.parameters, model=job.model, options=job.options
        )
        record(image, job, answer, time.monotonic() - start_s)
        advance()

    def record_failure(request: tuple[ImageFile, Job], error: DiptychError) -> None:
        image, job = request
        fields = non_null_fields(job.parameters, DEFAULT_OPTIONS)
        failures.append({"image": image.name, "model": job.model, **fields}, error)
        advance()

    await send_all(requests, send, record_failure, concurrency)
