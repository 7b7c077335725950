r"""The journal of a labelled folder: one line of JSON for every image that was answered, appended as the answer comes.

    {"asked": {"task": …, "model": …, …}}
    {"image": {"name": …, "size_bytes": …, "mtime_ns": …}, "answer": {…}}
    …

A line is one write, so a process that is killed leaves at most a last line without its end, which is cut off when the
journal is opened again: that image is asked about again, and no other. One process at a time holds a journal.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

from client.annotate.images import ImageFile
from client.annotate.job import AnnotationError, Job
from client.rest_messages import answer_from_json, answer_json
from client.results import Answer


@dataclass(frozen=True, slots=True)
class Record:
    """An image and what the model answered."""

    image: ImageFile
    answer: Answer


class Journal:
    """The answers so far, by the name of the image; `records` holds them all in memory."""

    def __init__(self, file: FileIO, records: dict[str, Record]) -> None:
        self.records = records
        self._file = file

    @classmethod
    def open(cls, path: Path, job: Job) -> Self:
        """Open the journal of a job, a new one where there is none; raise `AnnotationError` for one of another job."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(path, "a+")
        try:
            _lock(path, file)
            return cls(file, _read(path, file, job))
        except BaseException:
            file.close()
            raise

    def has(self, image: ImageFile) -> bool:
        """Say whether this image, with these bytes, was answered."""
        record = self.records.get(image.name)
        return record is not None and record.image == image

    def append(self, record: Record) -> None:
        """Keep an answer."""
        _write_line(self._file, {"image": asdict(record.image), "answer": answer_json(record.answer)})
        self.records[record.image.name] = record

    def close(self) -> None:
        """Write the last lines through to the disk, and let others have the journal."""
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
        raise AnnotationError(f"another process is writing {path}") from error


def _read(path: Path, file: FileIO, job: Job) -> dict[str, Record]:
    """Return the records of a file, whose torn last line is cut off, and whose first line is written if it is new."""
    file.seek(0)
    whole, _, torn = file.readall().rpartition(b"\n")
    if torn:
        file.truncate(len(whole) + 1 if whole else 0)
    if not whole:
        _write_line(file, {"asked": job.fields()})
        return {}
    header, *lines = (_parsed(path, number, line) for number, line in enumerate(whole.split(b"\n"), 1))
    _check_same_job(path, header.get("asked"), job)
    records = [Record(ImageFile(**line["image"]), answer_from_json(line["answer"])) for line in lines]
    return {record.image.name: record for record in records}


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise AnnotationError(f"{path}, line {number} is not JSON: {error}") from error
    return value


def _check_same_job(path: Path, asked: Any, job: Job) -> None:
    if asked != job.fields():
        was, now = json.dumps(asked), json.dumps(job.fields())
        raise AnnotationError(
            f"{path} is of another job: it asked {was}, now {now}; choose another --out, or delete it"
        )


def _write_line(file: FileIO, value: dict[str, Any]) -> None:
    line = json.dumps(value).encode() + b"\n"
    if file.write(line) != len(line):
        raise OSError(f"{file.name}: the disk took only a part of a line")
