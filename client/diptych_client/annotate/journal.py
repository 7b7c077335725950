r"""The journal of a labelled folder: one line of JSON for each answered image, appended when the
answer arrives.

    {"job": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

A killed process leaves at most one incomplete last line; only its image is requested again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from diptych_client.annotate.job import ImageFile, Job
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

    def __init__(self, log: AppendLog, records: dict[str, Record]) -> None:
        self.records = records
        self._log = log

    @classmethod
    def open(cls, path: Path, job: Job) -> Self:
        """Open or create the journal of a job; raise `RunError` for a journal of another job."""
        log = AppendLog.open(path)
        try:
            return cls(log, _read_records(log, job))
        except BaseException:
            log.close()
            raise

    def has(self, image: ImageFile) -> bool:
        """Return True if the journal has an answer to this image in its current state."""
        record = self.records.get(image.name)
        return record is not None and record.image == image

    def append(self, record: Record) -> None:
        self._log.append({"image": asdict(record.image), "answer": answer_json(record.answer)})
        self.records[record.image.name] = record

    def close(self) -> None:
        """Flush the journal to disk and release its lock."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_records(log: AppendLog, job: Job) -> dict[str, Record]:
    """Return the records of a journal; write the first line of a new one."""
    values = (value for _, value in log.values())
    header = next(values, None)
    if header is None:
        log.append({"job": job.fields()})
        return {}
    _check_same_job(log.path, header.get("job"), job)
    records = [
        Record(ImageFile(**line["image"]), answer_from_json(line["answer"])) for line in values
    ]
    return {record.image.name: record for record in records}


def _check_same_job(path: Path, fields: Any, job: Job) -> None:
    if fields != job.fields():
        recorded = json.dumps(fields)
        given = json.dumps(job.fields())
        raise RunError(
            f"{path} belongs to another job: recorded {recorded}, given {given}; "
            "repeat the recorded parameters, choose another --out, or delete the journal"
        )
