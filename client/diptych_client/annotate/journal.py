r"""The journal of a labelled folder: one line of JSON for each answered image, appended when the answer arrives.

    {"job": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

A line is written at once. A killed process leaves at most one incomplete last line, which is removed when the journal
is opened again; only that image is requested again. A journal is locked by the process that has it open.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

from diptych_client.annotate.job import AnnotationError, ImageFile, Job
from diptych_client.results import Answer
from diptych_client.transports.rest_messages import answer_from_json, answer_json


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its answer."""

    image: ImageFile
    answer: Answer


class Journal:
    """The records of a job by image name; all are held in memory."""

    def __init__(self, file: FileIO, records: dict[str, Record]) -> None:
        self.records = records
        self._file = file

    @classmethod
    def open(cls, path: Path, job: Job) -> Self:
        """Open or create the journal of a job; raise `AnnotationError` for a journal of another job."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+")
        try:
            _lock(path, file)
            return cls(file, _read_records(path, file, job))
        except BaseException:
            file.close()
            raise

    def has(self, image: ImageFile) -> bool:
        """Return True if the journal has an answer to this image in its current state."""
        record = self.records.get(image.name)
        return record is not None and record.image == image

    def append(self, record: Record) -> None:
        _write_line(self._file, {"image": asdict(record.image), "answer": answer_json(record.answer)})
        self.records[record.image.name] = record

    def close(self) -> None:
        """Flush the journal to disk and release its lock."""
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lock(path: Path, file: FileIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AnnotationError(f"{path} is locked by another process") from error


def _read_records(path: Path, file: FileIO, job: Job) -> dict[str, Record]:
    """Return the records of a journal; remove an incomplete last line, write the first line of a new journal."""
    file.seek(0)
    complete, _, incomplete = file.readall().rpartition(b"\n")
    if incomplete:
        file.truncate(len(complete) + 1 if complete else 0)
    if not complete:
        _write_line(file, {"job": job.fields()})
        return {}
    header, *lines = (_parsed_line(path, number, line) for number, line in enumerate(complete.split(b"\n"), 1))
    _check_same_job(path, header.get("job"), job)
    records = [Record(ImageFile(**line["image"]), answer_from_json(line["answer"])) for line in lines]
    return {record.image.name: record for record in records}


def _parsed_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise AnnotationError(f"{path}, line {number}: invalid JSON: {error}") from error
    return value


def _check_same_job(path: Path, fields: Any, job: Job) -> None:
    if fields != job.fields():
        recorded, given = json.dumps(fields), json.dumps(job.fields())
        raise AnnotationError(
            f"{path} belongs to another job: recorded {recorded}, given {given}; "
            "repeat the recorded parameters, choose another --out, or delete the journal"
        )


def _write_line(file: FileIO, value: dict[str, Any]) -> None:
    line = json.dumps(value).encode() + b"\n"
    if file.write(line) != len(line):
        raise OSError(f"{file.name}: incomplete write, the disk may be full")
