"""Archives of a dataset, unpacked within limits: no bomb, no path outside, only data files.

An archive may hold at most 100 times its size, or 100 MB if that is more, and a million files.
"""

import os
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
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


def unpack(archive: Path, folder: Path) -> None:
    """Write images and label files of an archive into a folder; raise `RunError`."""
    limit = max(MIN_LIMIT_BYTES, MAX_RATIO * archive.stat().st_size)
    num_bytes = 0
    try:
        for number, (name, changed_s, content) in enumerate(_members(archive), 1):
            path = path_within(folder, name.replace("\\", "/"))
            if path.suffix.lower() not in _KEPT or "__MACOSX" in PurePosixPath(name).parts:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while block := content.read(_BLOCK_BYTES):
                    num_bytes += len(block)
                    if num_bytes > limit or number > MAX_FILES:
                        allowed = f"{limit:,} bytes or {MAX_FILES:,} files"
                        raise RunError(f"{archive} holds more than {allowed}: unpack it yourself")
                    file.write(block)
            os.utime(path, (changed_s, changed_s))  # equal in the next run, which resumes this one
    except _DAMAGED as error:
        raise RunError(f"{archive} is not a readable archive: {error}") from error


def _members(archive: Path) -> Iterator[tuple[str, float, IO[bytes]]]:
    """Yield name, time of change and content of each file: neither links nor devices."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir():
                    changed_s = time.mktime((*entry.date_time, 0, 0, -1))
                    yield entry.filename, changed_s, zipped.open(entry)
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            content = tarred.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, member.mtime, content
