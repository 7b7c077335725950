r"""Files that a command writes, and may replace only if it wrote them itself.

    written.jsonl   {"written": path, "state": digest of the text, or size and time of an image}\n…

A file that somebody else wrote, or changed since, is never replaced without `--overwrite`. A file
is recorded before it is written: an interrupted run may replace what it left.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Self

from diptych_client.long_runs.append_log import AppendLog, RunError

_LOG = "written.jsonl"
_FIRST_KEY = "written"
_ANY_STATE = ""  # of a file that no person edits


def refusal(path: Path) -> RunError:
    """Return the error of a file that must not be replaced."""
    return RunError(
        f"{path} exists and is not as this command wrote it: move it or choose another place, or"
        " give --overwrite to replace it"
    )


class Outputs:
    """The files of a run in its folder, and those beside it that its options name."""

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        self._states: defaultdict[str, set[str]] = defaultdict(set)
        self._stack = ExitStack()
        self._log: AppendLog | None = None

    def __enter__(self) -> Self:
        if (self.folder / _LOG).exists():
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, paths: Iterable[Path]) -> None:
        """Raise `RunError` for the first file that this run may not replace."""
        for path in paths:
            if path.exists() and not self._overwrite and not self._is_own(path):
                raise refusal(path)

    def claim(self, path: Path) -> Path:
        """Record a file whose content changes during a run; raise `RunError` as `check` does."""
        self.check([path])
        self._record(path, _ANY_STATE)
        return path

    def write(self, path: Path, text: str) -> Path:
        """Write a file completely or not at all; raise `RunError` as `check` does."""
        self.check([path])
        data = text.encode()
        self._record(path, _digest(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        incomplete = path.with_name(path.name + ".incomplete")
        incomplete.write_bytes(data)
        os.replace(incomplete, path)
        return path

    def has_link(self, source: Path, path: Path) -> bool:
        """Return True for a link that is there; raise `RunError` as `check` does."""
        if path.exists() and source.exists() and path.samefile(source):
            return True
        self.check([path])
        return False

    def link(self, source: Path, path: Path) -> None:
        """Link or copy an image; a symbolic link is followed."""
        source = source.resolve()
        if self.has_link(source, path):
            return
        self._record(path, _stamp(source))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without links
            shutil.copy2(source, path)

    def _is_own(self, path: Path) -> bool:
        states = self._states[self._name(path)]
        if _ANY_STATE in states or not states:
            return bool(states)
        return _stamp(path) in states or _digest(path.read_bytes()) in states

    def _name(self, path: Path) -> str:
        """Return the path in the folder, or an absolute one."""
        absolute = path.absolute()
        folder = self.folder.absolute()
        is_inside = absolute.is_relative_to(folder)
        return (absolute.relative_to(folder) if is_inside else absolute).as_posix()

    def _record(self, path: Path, state: str) -> None:
        name = self._name(path)
        if state not in self._states[name]:
            self._open().append({_FIRST_KEY: name, "state": state})
            self._states[name].add(state)

    def _open(self) -> AppendLog:
        if self._log is None:
            self._log = self._stack.enter_context(AppendLog.open(self.folder / _LOG, _FIRST_KEY))
            for _, row in self._log.values():
                self._states[row[_FIRST_KEY]].add(row["state"])
        return self._log


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
