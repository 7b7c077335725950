r"""Runs that survive an interruption, and that replace no file of the user's.

`AppendLog` stores each answer when it arrives, `send_all` limits the requests in flight,
`FailureLog` lists those that failed, and `Outputs` writes the results. The files:

    journal.jsonl, answers.jsonl   logs of answers; a killed process loses at most one line
    written.jsonl                  {"written": path, "state": size and time}\n…

A log is locked by the process that has it open. A file is recorded in written.jsonl before it is
written: an interrupted run may replace what it left.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import Any, Self, TypeVar

from diptych_client.errors import DiptychError, affects_every_image

ItemT = TypeVar("ItemT")
_ANY_STATE = ""  # state of a file that no person edits
_HASH_BYTES = 4


class RunError(Exception):
    """The run is impossible as requested; the message says what to change."""


class AppendLog:
    """A locked file of JSON lines, only appended to and read: values are found by their offset."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        self._size_bytes = 0
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self._size_bytes += len(line)
        file.truncate(self._size_bytes)  # an incomplete line

    @classmethod
    @contextmanager
    def open(cls, path: Path, first_key: str) -> Iterator[Self]:
        """Open or create a log whose first line begins with a key; raise `RunError` for others."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileIO(path, "a+") as file:
            try:
                _lock(file)
            except (BlockingIOError, PermissionError) as error:
                raise RunError(f"{path} is locked by another process") from error
            beginning = json.dumps({first_key: ""}).encode()[:-3]
            file.seek(0)
            if not beginning.startswith(file.read(len(beginning))):
                raise RunError(
                    f"{path} is not a log of this command: move it, or choose another output folder"
                )
            yield cls(path, file)

    def values(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each value with its offset; raise `RunError` for a line that is not JSON."""
        offset = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise RunError(f"{self.path}, line {number}: invalid JSON: {error}") from error
                yield offset, value
                offset += len(line)

    def value(self, offset: int) -> dict[str, Any]:
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


def _lock(file: FileIO) -> None:
    """Lock a file until it is closed; raise `PermissionError` (Windows) or `BlockingIOError`."""
    if sys.platform == "win32":
        import msvcrt

        # others cannot read locked bytes: lock one behind the end of any log
        file.seek(sys.maxsize)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FailureLog:
    """A file with one line of JSON for each request that failed in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_failures = 0
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, request: Mapping[str, object], error: DiptychError) -> None:
        """Write the fields that name the request, and its error."""
        row = {**request, **asdict(error.detail)}
        self._file.write(json.dumps(row) + "\n")
        self.num_failures += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def send_all(
    items: Iterable[ItemT],
    send: Callable[[ItemT], Awaitable[None]],
    on_failure: Callable[[ItemT, DiptychError], None],
    concurrency: int,
) -> None:
    """Send all items concurrently; raise the first error that affects every request."""
    queue = iter(items)

    async def work() -> None:
        for item in queue:
            try:
                await send(item)
            except DiptychError as error:
                if affects_every_image(error):
                    raise
                on_failure(item, error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


class Outputs:
    """The files of a run in its folder, and those elsewhere that its options name.

    A file that somebody else wrote, or changed since, is never replaced without `--overwrite`.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        self._written = set[tuple[str, str]]()  # names with states
        self._record_path = folder / "written.jsonl"
        self._record: AppendLog | None = None
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        if self._record_path.exists():
            self._opened_record()
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def check(self, paths: Iterable[Path]) -> None:
        """Raise `RunError` for the first file that this run may not replace."""
        for path in paths:
            if path.exists() and not self._overwrite:
                states = {(self._name(path), _ANY_STATE), (self._name(path), _state(path))}
                if not states & self._written:
                    hint = "move it or choose another place, or give --overwrite to replace it"
                    raise RunError(f"{path} exists and is not as this command wrote it: {hint}")

    def claim(self, path: Path) -> Path:
        """Record a file whose content changes during a run; raise `RunError` as `check` does."""
        self.check([path])
        self._add(path, _ANY_STATE)
        return path

    def write(self, path: Path, content: str | bytes) -> Path:
        """Write a file completely or not at all; raise `RunError` as `check` does."""
        self.check([path])
        with self._replacing(path) as incomplete:
            incomplete.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def remove(self, path: Path) -> None:
        """Remove a file of an earlier run; raise `RunError` as `check` does."""
        self.check([path])
        path.unlink(missing_ok=True)

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
        with self._replacing(path) as incomplete:
            try:
                os.link(source, incomplete)
            except OSError:  # another file system, or one without links
                shutil.copy2(source, incomplete)

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        """Yield a file in the same folder, which replaces this one when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # a suffix might exceed the 255 bytes that file systems allow
        name_hash = blake2b(os.fsencode(path.name), digest_size=_HASH_BYTES).hexdigest()
        incomplete = path.with_name(f".incomplete-{name_hash}")
        incomplete.unlink(missing_ok=True)  # of a killed process
        try:
            yield incomplete
            self._add(path, _state(incomplete))
            os.replace(incomplete, path)
        finally:
            incomplete.unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        """Return the path in the folder, or an absolute one: Windows' drives have no relation."""
        absolute = Path(os.path.abspath(path))
        folder = Path(os.path.abspath(self.folder))
        name = absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
        return name.as_posix()

    def _add(self, path: Path, state: str) -> None:
        if (self._name(path), state) not in self._written:
            self._opened_record().append({"written": self._name(path), "state": state})
            self._written.add((self._name(path), state))

    def _opened_record(self) -> AppendLog:
        if self._record is None:
            log = AppendLog.open(self._record_path, "written")
            self._record = self._open_files.enter_context(log)
            for _, row in self._record.values():
                self._written.add((row["written"], row["state"]))
        return self._record


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
