"""The output and the error file of a batch while it runs: lines are appended, and found again after a crash.

A request is answered if its line is there and ends; a line that was cut by a crash or a full disk is removed. Only the
process that holds the lock of the store writes. All calls block.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.batches.lines import OutputLine

_TAIL_BYTES = 65_536


@dataclass(slots=True)
class Journal:
    """Both files, and the custom ids that are in each."""

    output: Path
    errors: Path
    answered: set[str]
    failed: set[str]

    @classmethod
    def open(cls, output: Path, errors: Path) -> "Journal":
        """Read the files, without a last line that was cut."""
        return cls(output, errors, _recovered(output), _recovered(errors))

    @property
    def done(self) -> set[str]:
        return self.answered | self.failed

    def append(self, lines: Sequence[OutputLine]) -> None:
        """Append lines durably; raise `OSError`, after which the files must be opened again."""
        answers = [line for line in lines if line.is_answer]
        errors = [line for line in lines if not line.is_answer]
        _append(self.output, answers)
        self.answered.update(line.custom_id for line in answers)
        _append(self.errors, errors)
        self.failed.update(line.custom_id for line in errors)


def _append(path: Path, lines: Sequence[OutputLine]) -> None:
    if not lines:
        return
    with path.open("ab") as file:
        file.write("".join(f"{line.model_dump_json()}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _recovered(path: Path) -> set[str]:
    """Cut a last line without its end; return the custom ids of the others."""
    try:
        with path.open("r+b") as file:
            _cut_last_line(file.fileno())
            return {json.loads(line)["custom_id"] for line in file}
    except FileNotFoundError:
        return set()


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
