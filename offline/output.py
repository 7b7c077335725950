"""The output folder: the manifest of its job, and a file for each answered shard.

    job.json                 the manifest (offline/job.py)
    part-00000012.parquet    the rows of one shard, in the order of the input; or .jsonl
    annotations.json         COCO only: all shards, written at the end (offline/coco.py)
    .incomplete/             files being written, attempts at shards (offline/attempts.py)

A file gets its name when it is complete: it is there with all its rows, or not at all.
"""

import posixpath
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from offline.filesystems import InputError, file_system
from offline.job import Job
from offline.rows import Row, read_rows, write_rows

_MANIFEST = "job.json"
_INCOMPLETE = ".incomplete"
_PREFIX = "part-"


@dataclass(frozen=True, slots=True)
class Totals:
    """The number of images of the output, and of those that failed."""

    num_images: int
    num_failed: int


@dataclass(frozen=True, slots=True)
class Output:
    """The output of one job at a path or URI."""

    uri: str
    job: Job

    def begin(self) -> frozenset[int]:
        """Write or check the manifest, and return the shards that are done; raise `InputError`."""
        files, folder = file_system(self.uri)
        files.makedirs(folder, exist_ok=True)
        present = {posixpath.basename(path) for path in files.ls(folder, detail=False)}
        if _MANIFEST in present:
            self.job.check(files.cat_file(self._path(_MANIFEST)).decode(), self._path(_MANIFEST))
        elif present - {_INCOMPLETE}:
            raise InputError(
                f"{self.uri} has files but no {_MANIFEST}; choose an empty folder, or one of this"
                " command"
            )
        self.remove_incomplete()
        if _MANIFEST not in present:
            self.write(_MANIFEST, lambda stream: stream.write(self.job.manifest().encode()))
        indices = range(self.job.num_shards)
        return frozenset(index for index in indices if self._name(index) in present)

    def remove_incomplete(self) -> None:
        """Remove what killed processes have left."""
        files, _ = file_system(self.uri)
        if files.exists(self._path(_INCOMPLETE)):
            files.rm(self._path(_INCOMPLETE), recursive=True)

    def write_shard(self, index: int, rows: Sequence[Row]) -> None:
        shard_format = self.job.shard_format
        self.write(self._name(index), lambda stream: write_rows(stream, rows, shard_format))

    def write(self, name: str, content: Callable[[IO[bytes]], object]) -> None:
        """Write a file completely, or not at all; it replaces one of the same name."""
        files, _ = file_system(self.uri)
        # a worker may be lost, and live on
        incomplete = self.incomplete_path(f"{name}.{uuid.uuid4().hex}")
        files.makedirs(self._path(_INCOMPLETE), exist_ok=True)
        with files.open(incomplete, "wb") as stream:
            content(stream)
        files.mv(incomplete, self._path(name))

    def incomplete_path(self, name: str) -> str:
        """Return the path of a file that is removed at the end or start of a run."""
        return self._path(f"{_INCOMPLETE}/{name}")

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield all rows, numbered from 1; one shard at a time is in memory."""
        number = 0
        for index in range(self.job.num_shards):
            with file_system(self.uri)[0].open(self._path(self._name(index)), "rb") as stream:
                for row in read_rows(stream, self.job.shard_format):
                    number += 1
                    yield number, row

    def totals(self) -> Totals:
        num_images = num_failed = 0
        for _, row in self.rows():
            num_images += 1
            num_failed += row.error is not None
        return Totals(num_images, num_failed)

    def _name(self, index: int) -> str:
        return f"{_PREFIX}{index:08}.{self.job.shard_format}"

    def _path(self, name: str) -> str:
        return posixpath.join(file_system(self.uri)[1], name)
