"""The input as shards, by its files alone: a resumed run finds the same images.

    images       `shard_size` files
    .parquet     `shard_size` rows of one file; a column of encoded images, of paths, or Hugging
                 Face's {bytes, path}
    .tar         one archive, as WebDataset writes them: every member that is an image

Images are read one by one, when a place is free for them: a shard may be larger than memory.
"""

import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from imaging.files import IMAGE_SUFFIXES
from offline.filesystems import InputError, StoredFile, list_files

_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_ROWS_READ_AT_ONCE = 16
_UNREADABLE = (OSError, EOFError, tarfile.TarError, zlib.error, pa.ArrowException)
# typeshed lacks them.
_NO_END = (tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]


class _Member(tarfile.TarInfo):
    """A member of an archive that must end with its mark; tarfile ignores a cut."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _NO_END as error:
            raise tarfile.ReadError("it has no end mark: images may be missing") from error


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image of the input; `read` returns its file, or raises `OSError`."""

    key: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class FilesShard:
    """Image files."""

    files: tuple[StoredFile, ...]

    def describe(self) -> str:
        return "\n".join(file.key for file in self.files)

    def images(self) -> Iterator[InputImage]:
        return (InputImage(file.key, file.read) for file in self.files)


@dataclass(frozen=True, slots=True)
class RowsShard:
    """Rows of a parquet file; the key of an image is FILE#ROW, or the path in its row."""

    file: StoredFile
    column: str
    start: int
    stop: int

    def describe(self) -> str:
        return f"{self.file.key}#{self.start}-{self.stop}"

    def images(self) -> Iterator[InputImage]:
        with self.file.open() as stream:
            for row, value in self._values(pq.ParquetFile(stream)):
                key = f"{self.file.key}#{row}"
                if isinstance(value, dict):  # Hugging Face's Image feature
                    value = value.get("path") if value.get("bytes") is None else value["bytes"]
                if isinstance(value, str):
                    file = self.file.beside(value)
                    yield InputImage(file.key, file.read)
                elif value is None:
                    yield _unreadable(key, f"the column {self.column} of the row is null")
                else:
                    yield InputImage(key, partial(bytes, value))

    def _values(self, parquet: pq.ParquetFile) -> Iterator[tuple[int, Any]]:
        """Yield the rows of this shard; row groups without any are not read."""
        groups: list[int] = []
        first_row = row = 0
        for index in range(parquet.num_row_groups):
            next_row = first_row + parquet.metadata.row_group(index).num_rows
            if first_row < self.stop and next_row > self.start:
                row = row if groups else first_row
                groups.append(index)
            first_row = next_row
        for batch in parquet.iter_batches(_ROWS_READ_AT_ONCE, groups, [self.column]):
            for value in batch.column(0):
                if self.start <= row < self.stop:
                    yield row, value.as_py()
                row += 1


@dataclass(frozen=True, slots=True)
class ArchiveShard:
    """The images of a tar archive, read from start to end; the key of each is FILE/MEMBER."""

    file: StoredFile

    def describe(self) -> str:
        return self.file.key

    def images(self) -> Iterator[InputImage]:
        with (
            self.file.open() as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive,
        ):
            for member in archive:
                is_image = member.isfile() and _is_image(member.name)
                if is_image and (content := archive.extractfile(member)):
                    data = content.read()
                    yield InputImage(f"{self.file.key}/{member.name}", partial(bytes, data))


Shard = FilesShard | RowsShard | ArchiveShard


def images_of(shard: Shard) -> Iterator[InputImage]:
    """Yield the images of a shard, and an unreadable one where the rest cannot be read."""
    try:
        yield from shard.images()
    except _UNREADABLE as error:
        yield _unreadable(shard.describe(), f"the file cannot be read to its end: {error}")


def plan_shards(inputs: Sequence[str], column: str, shard_size: int) -> tuple[Shard, ...]:
    """Return the shards of all inputs; raise `InputError`."""
    files: dict[str, StoredFile] = {}  # each once
    for uri in inputs:
        num_readable = 0
        for file in list_files(uri):
            if _is_image(file.path) or file.path.endswith((".parquet", *_ARCHIVES)):
                num_readable += 1
                files[file.key] = file
        if not num_readable:
            allowed = ", ".join((*sorted(IMAGE_SUFFIXES), ".parquet", *_ARCHIVES))
            raise InputError(f"{uri}: there is no file with one of the endings {allowed}")
    images = []
    tables: list[Shard] = []
    archives = []
    for file in files.values():
        if _is_image(file.path):
            images.append(file)
        elif file.path.endswith(".parquet"):
            tables += _rows_shards(file, column, shard_size)
        else:
            archives.append(ArchiveShard(file))
    shards: list[Shard] = []
    for start in range(0, len(images), shard_size):
        shards.append(FilesShard(tuple(images[start : start + shard_size])))
    return (*shards, *tables, *archives)


def digest_of(shards: Sequence[Shard]) -> str:
    """Return a hash of which images are in which shard, hexadecimal."""
    digest = blake3()
    for shard in shards:
        digest.update(shard.describe().encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def _rows_shards(file: StoredFile, column: str, shard_size: int) -> list[Shard]:
    try:
        with file.open() as stream:
            parquet = pq.ParquetFile(stream)
            num_rows = parquet.metadata.num_rows
            names = parquet.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file.key}: {error}") from error
    if column not in names:
        raise InputError(
            f"{file.key} has no column {column!r}; choose with --column one of {', '.join(names)}"
        )
    starts = range(0, num_rows, shard_size)
    return [RowsShard(file, column, start, min(num_rows, start + shard_size)) for start in starts]


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _unreadable(key: str, message: str) -> InputImage:
    def read() -> bytes:
        raise OSError(message)

    return InputImage(key, read)
