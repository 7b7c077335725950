"""Archives of a dataset, unpacked within limits: no bomb, no path outside, only data files.

An archive may hold at most 100 times its size, or 100 MB if that is more, and a million files.
"""

import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from diptych_client.inputs.files import SUFFIXES, path_within
from diptych_client.long_runs import RunError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_FILES = 1_000_000
MAX_RATIO = 100
MIN_LIMIT_BYTES = 100_000_000
_LABELS = {".json", ".jsonl", ".yaml", ".yml", ".txt", ".xml", ".parquet", ".arrow"}
_KEPT = SUFFIXES | _LABELS | {".names", ".data", ".labels"}
_BLOCK_BYTES = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)

Member = tuple[str, float, Callable[[], IO[bytes] | None]]  # name, time of change, its content


def unpack(archive: Path, folder: Path) -> None:
    """Write images and label files of an archive into a folder; raise `RunError`."""
    limit = max(MIN_LIMIT_BYTES, MAX_RATIO * archive.stat().st_size)
    num_files = 0
    num_bytes = 0
    with _members(archive) as members:
        for name, changed_s, opened in members:
            num_files += 1
            path = path_within(folder, name.replace("\\", "/"))
            if path.suffix.lower() not in _KEPT or "__MACOSX" in PurePosixPath(name).parts:
                continue
            content = opened()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while content is not None and (block := content.read(_BLOCK_BYTES)):
                    num_bytes += len(block)
                    if num_bytes > limit or num_files > MAX_FILES:
                        allowed = f"{limit:,} bytes or {MAX_FILES:,} files"
                        raise RunError(f"{archive} holds more than {allowed}: unpack it yourself")
                    file.write(block)
            os.utime(path, (changed_s, changed_s))  # equal in the next run, which resumes this one


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                yield _zipped(zipped)
        else:
            with tarfile.open(archive) as tarred:
                yield _tarred(tarred)
    except _DAMAGED as error:
        raise RunError(f"{archive} is not a readable archive: {error}") from error


def _zipped(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if not info.is_dir():
            changed_s = time.mktime((*info.date_time, 0, 0, -1))
            yield info.filename, changed_s, lambda info=info: archive.open(info)  # type: ignore[misc]


def _tarred(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isreg():  # neither a link nor a device
            yield info.name, info.mtime, lambda info=info: archive.extractfile(info)  # type: ignore[misc]
