"""Writes that survive a crash: whole files, and the output and the error file of a batch while it
runs, whose lines are appended and found again.

A request is answered if its line is there and ends; a line that was cut by a crash or a full disk
is removed. Only the process that holds the lock of the store writes. All calls block.
"""

import json
import os
import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.batches.lines import IdHashes, RenderedLine, id_hash

_TAIL_BYTES = 65_536


def write_whole(path: Path, text: str) -> None:
    """Replace a file as a whole, durably."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(slots=True)
class Journal:
    """Both files, and the number of the lines in each."""

    output: Path
    errors: Path
    num_answered: int
    num_failed: int
    recovered: IdHashes  # the requests that had a line when the files were opened

    @classmethod
    def open(cls, output: Path, errors: Path) -> "Journal":
        """Read the files, without a last line that was cut."""
        answered = _recovered(output)
        failed = _recovered(errors)
        return cls(output, errors, len(answered), len(failed), IdHashes(answered + failed))

    def append(self, lines: Sequence[RenderedLine]) -> None:
        """Append lines durably; raise `OSError`, after which the files must be opened again."""
        answers = [line.data for line in lines if line.is_answer]
        errors = [line.data for line in lines if not line.is_answer]
        _append(self.output, answers)
        self.num_answered += len(answers)
        _append(self.errors, errors)
        self.num_failed += len(errors)


def _append(path: Path, lines: Sequence[bytes]) -> None:
    if not lines:
        return
    with path.open("ab") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _recovered(path: Path) -> "array[int]":
    """Cut a last line without its end; return the hashes of the custom ids of the others."""
    try:
        with path.open("r+b") as file:
            _cut_last_line(file.fileno())
            return array("Q", (id_hash(json.loads(line)["custom_id"]) for line in file))
    except FileNotFoundError:
        return array("Q")


def _cut_last_line(fd: int) -> None:
    size = end = os.fstat(fd).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(fd, end)
        os.fsync(fd)
