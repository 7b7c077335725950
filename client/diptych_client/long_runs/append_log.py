"""A file of JSON lines that is only appended to: a killed process loses at most one line.

An incomplete last line is removed when the log is opened again. A log is locked by the process that
has it open. Values are found by their offset, so that a long log need not be held in memory.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Self

_BLOCK_BYTES = 1 << 16


class RunError(Exception):
    """The run is impossible as requested; the message says what to change."""


class AppendLog:
    """A locked log, open for appending and reading."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        self._size_bytes = _remove_incomplete_line(file)

    @classmethod
    @contextmanager
    def open(cls, path: Path, first_key: str) -> Iterator[Self]:
        """Open or create a log whose first line is an object that begins with a key.

        Raise `RunError` for another file, and if another process has the log open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileIO(path, "a+") as file:
            try:
                _lock(file)
            except (BlockingIOError, PermissionError) as error:
                raise RunError(f"{path} is locked by another process") from error
            _check_form(path, file, first_key)
            try:
                yield cls(path, file)
            finally:
                os.fsync(file.fileno())

    def values(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each value with its offset; raise `RunError` for a line that is not JSON."""
        with self.path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise RunError(f"{self.path}, line {number}: invalid JSON: {error}") from error
                yield offset, value
                offset += len(line)

    def value(self, offset: int) -> dict[str, Any]:
        """Return the value at an offset."""
        with self.path.open("rb") as file:
            file.seek(offset)
            value: dict[str, Any] = json.loads(file.readline())
        return value

    def append(self, value: Mapping[str, Any]) -> int:
        """Write a value at once and return its offset."""
        line = json.dumps(value).encode() + b"\n"
        offset = self._size_bytes
        if self._file.write(line) != len(line):
            raise OSError(f"{self.path}: incomplete write, the disk may be full")
        self._size_bytes += len(line)
        return offset


def _check_form(path: Path, file: FileIO, first_key: str) -> None:
    """Raise `RunError` for a file that is not a log: its end would be cut, or lines appended."""
    expected = json.dumps({first_key: ""}).encode()[:-3]
    file.seek(0)
    beginning = file.read(len(expected))
    if beginning != expected[: len(beginning)]:
        raise RunError(
            f"{path} is not a log of this command: move it, or choose another output folder"
        )


def _remove_incomplete_line(file: FileIO) -> int:
    """Cut the file after its last newline and return its size."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)
    return end


def _lock(file: FileIO) -> None:
    """Lock a file until it is closed; raise if another process has locked it.

    The error is Windows' `PermissionError` or `BlockingIOError`.
    """
    if sys.platform == "win32":
        import msvcrt

        # others cannot read what is locked: one byte behind the end of any log
        file.seek(sys.maxsize)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
