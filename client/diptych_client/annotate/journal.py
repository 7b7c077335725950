r"""The journal of a labelled folder: a line of JSON for each image, appended when it is answered.

    {"job": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

A killed process leaves at most one incomplete last line; only its image is requested again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from diptych_client.annotate.job import Job
from diptych_client.inputs.files import ImageFile
from diptych_client.long_runs import AppendLog, RunError
from diptych_client.results import Answer
from diptych_client.transports.rest_messages import answer_from_json, answer_json


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its answer."""

    image: ImageFile
    answer: Answer


class Journal:
    """The records of a job by image name; all are held in memory."""

    def __init__(self, log: AppendLog, job: Job) -> None:
        """Read the records, or write the job; raise `RunError` for a journal of another job."""
        self.records: dict[str, Record] = {}
        self._log = log
        values = (value for _, value in log.values())
        header = next(values, None)
        if header is None:
            log.append({"job": job.fields()})
        elif header.get("job") != job.fields():
            recorded = json.dumps(header.get("job"))
            given = json.dumps(job.fields())
            raise RunError(
                f"{log.path} belongs to another job: recorded {recorded}, given {given}; "
                "repeat the recorded parameters, choose another --out, or delete the journal"
            )
        for line in values:
            image = ImageFile(**line["image"])
            self.records[image.name] = Record(image, answer_from_json(line["answer"]))

    @classmethod
    @contextmanager
    def open(cls, path: Path, job: Job) -> Iterator[Self]:
        """Open or create the journal of a job."""
        with AppendLog.open(path, "job") as log:
            yield cls(log, job)

    def has(self, image: ImageFile) -> bool:
        """Return True if the journal has an answer to this image in its current state."""
        record = self.records.get(image.name)
        return record is not None and record.image == image

    def append(self, record: Record) -> None:
        self._log.append({"image": asdict(record.image), "answer": answer_json(record.answer)})
        self.records[record.image.name] = record
