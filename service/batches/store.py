"""The folder of files and batches. Any number of gateways may share it.

    lock                        held by the one process that runs batches
    uploads/                    of uploads that are not complete
    KEY/files/ID.jsonl          a file's content; the output of an unfinished batch grows in it
    KEY/files/ID.json           a file's object; without it there is no file
    KEY/batches/ID.json         a batch's object, written by its creator and then by the process
                                that runs it
    KEY/batches/ID.cancel       a cancellation was requested

KEY identifies an API key by its hash. An id begins with its time, so that names sort by age.
Objects are replaced as a whole (written beside, renamed): a process that is killed leaves the old
one or the new one. All calls block.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from service.batches.journal import write_whole
from service.batches.wire import DAY_S, ENDED, MAX_KEPT_S, Batch, BatchRequest, FileObject
from service.errors import InvalidRequest, NotFound, Overloaded
from service.settings import SettingsError, variable
from tasks.errors import shown

logger = logging.getLogger(__name__)

MAX_BYTES_PER_KEY = 10_000_000_000  # all files, outputs included; limits uploads only
MAX_FILES_PER_KEY = 10_000
MAX_BATCHES_PER_KEY = 1_000  # including those that ended in the last 30 days
_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")


class BatchState(BaseModel):
    """A batch's object and what only the service knows of it."""

    batch: Batch
    output_id: str  # ids of the files that its answers and errors are written to
    error_id: str
    output_kept_s: int


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """The files and batches of one API key."""

    path: Path

    @property
    def owner(self) -> str:
        """The API key, as its hash."""
        return self.path.name

    @property
    def uploads(self) -> Path:
        """The folder of all keys' uploads that are not complete."""
        return self.path.parent / "uploads"

    @property
    def files(self) -> Path:
        return self.path / "files"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.files / f"{file_id}.jsonl"

    def open(self, file_id: str) -> BinaryIO:
        """Open a file's content, which stays readable if the file is deleted; raise `NotFound`."""
        file = self.file(file_id)
        try:
            return self.content(file.id).open("rb")
        except FileNotFoundError as error:  # deleted meanwhile
            raise _no_file(file_id) from error

    def file(self, file_id: str) -> FileObject:
        """Return a file; raise `NotFound`."""
        found = _read(self.files, file_id)
        if found is None:
            raise _no_file(file_id)
        return FileObject.model_validate_json(found)

    def add_file(
        self, file_id: str, filename: str, purpose: Literal["batch", "batch_output"], kept_s: int
    ) -> FileObject:
        """Make a file of content that is in its place."""
        now_s = int(time.time())
        num_bytes = self.content(file_id).stat().st_size
        file = FileObject(
            id=file_id,
            bytes=num_bytes,
            created_at=now_s,
            expires_at=now_s + kept_s,
            filename=filename,
            purpose=purpose,
        )
        write_whole(self.files / f"{file_id}.json", file.model_dump_json())
        return file

    def upload(self, temporary: Path, filename: str, kept_s: int) -> FileObject:
        """Make a file of an upload; raise `Overloaded` above a limit of the key."""
        self.check_room(temporary.stat().st_size)
        self.files.mkdir(parents=True, exist_ok=True)
        file_id = new_id("file-")
        temporary.rename(self.content(file_id))
        try:
            return self.add_file(file_id, filename, "batch", kept_s)
        except OSError:
            self.remove_file(file_id)
            raise

    def check_room(self, num_bytes: int = 1) -> None:
        """Raise `Overloaded` if another file of `num_bytes` would exceed a limit of the key."""
        sizes = self._sizes()
        if len(sizes) >= MAX_FILES_PER_KEY or sum(sizes) + num_bytes > MAX_BYTES_PER_KEY:
            files = f"{len(sizes)} of {MAX_FILES_PER_KEY} files"
            size = f"{sum(sizes)} of {MAX_BYTES_PER_KEY} bytes"
            raise Overloaded(f"this key has {files} of {size}; delete some", 60)

    def num_free_bytes(self) -> int:
        """Return the number of bytes by which the files may grow."""
        return MAX_BYTES_PER_KEY - sum(self._sizes())

    def _sizes(self) -> list[int]:
        """Return the sizes of all contents; those of unfinished batches grow."""
        sizes: list[int] = []
        for entry in _entries(self.files):
            if entry.name.endswith(".jsonl"):
                with suppress(FileNotFoundError):  # just removed
                    sizes.append(entry.stat().st_size)
        return sizes

    def delete_file(self, file_id: str) -> None:
        """Raise `NotFound`, or `InvalidRequest` for the input of an unfinished batch."""
        self.file(file_id)
        for state in self.states():
            if state.batch.input_file_id == file_id and state.batch.status not in ENDED:
                problem = f"{file_id} is the input of {state.batch.id}, which has not ended"
                raise InvalidRequest(problem, "file_id")
        self.remove_file(file_id)

    def remove_file(self, file_id: str) -> None:
        (self.files / f"{file_id}.json").unlink(missing_ok=True)
        self.content(file_id).unlink(missing_ok=True)

    def file_ids(self) -> list[str]:
        """Return the ids of the files, the oldest first."""
        return _ids(self.files)

    def create_batch(self, request: BatchRequest) -> Batch:
        """Raise `NotFound` for the input, or `Overloaded` above a limit of the key."""
        self.check_room()  # the output needs room
        if self.file(request.input_file_id).purpose != "batch":
            problem = f"{request.input_file_id} cannot be an input file: its purpose must be batch"
            raise InvalidRequest(problem, "input_file_id")
        if len(_ids(self.batches)) >= MAX_BATCHES_PER_KEY:
            usage = f"this key has {MAX_BATCHES_PER_KEY} batches"
            raise Overloaded(f"{usage}; they are removed 30 days after they were created", DAY_S)
        self.batches.mkdir(parents=True, exist_ok=True)
        now_s = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            created_at=now_s,
            expires_at=now_s + DAY_S,
            metadata=request.metadata,
        )
        state = BatchState(
            batch=batch,
            output_id=new_id("file-"),
            error_id=new_id("file-"),
            output_kept_s=request.output_expires_after.seconds,
        )
        self.save(state)
        return batch

    def state(self, batch_id: str) -> BatchState:
        """Return a batch with the cancellation that was requested; raise `NotFound`."""
        found = _read(self.batches, batch_id)
        if found is None:
            raise NotFound(f"no batch {shown(batch_id)} of this API key", "batch_id")
        state = BatchState.model_validate_json(found)
        if state.batch.status not in ENDED:
            state.batch.cancelling_at = self._cancelling_at(batch_id)
            if state.batch.cancelling_at is not None:
                state.batch.status = "cancelling"
        return state

    def save(self, state: BatchState) -> None:
        write_whole(self.batches / f"{state.batch.id}.json", state.model_dump_json())

    def cancel(self, batch_id: str) -> Batch:
        """Request the cancellation; raise `NotFound`, or `InvalidRequest` if it has ended."""
        batch = self.state(batch_id).batch
        if batch.status in ENDED:
            raise InvalidRequest(
                f"{batch_id} cannot be cancelled: it is {batch.status}", "batch_id"
            )
        (self.batches / f"{batch_id}.cancel").touch()
        return self.state(batch_id).batch

    def is_cancelling(self, batch_id: str) -> bool:
        return self._cancelling_at(batch_id) is not None

    def batch_ids(self) -> list[str]:
        """Return the ids of the batches, the oldest first."""
        return _ids(self.batches)

    def cancelled_ids(self) -> list[str]:
        """Return the ids of the batches whose cancellation was requested; some have ended."""
        return _ids(self.batches, ".cancel")

    def states(self) -> Iterator[BatchState]:
        """Yield every batch."""
        for batch_id in self.batch_ids():
            with suppress(NotFound):  # another process has just removed it
                yield self.state(batch_id)

    def remove_batch(self, batch_id: str) -> None:
        (self.batches / f"{batch_id}.json").unlink(missing_ok=True)
        (self.batches / f"{batch_id}.cancel").unlink(missing_ok=True)

    def remove_expired(self, now_s: float) -> None:
        """Remove files and batches that are no longer kept; raise `ValidationError`."""
        used = set[str]()
        for state in self.states():
            if state.batch.status not in ENDED:
                used.update((state.batch.input_file_id, state.output_id, state.error_id))
            elif state.batch.created_at + MAX_KEPT_S < now_s:
                self.remove_batch(state.batch.id)
        for file_id in self.file_ids():
            with suppress(NotFound):  # deleted by its client meanwhile
                if file_id not in used and self.file(file_id).expires_at < now_s:
                    self.remove_file(file_id)
        _remove_old(self.files, now_s, kept=used | set(self.file_ids()))
        _remove_old(self.batches, now_s, kept=self.batch_ids())

    def _cancelling_at(self, batch_id: str) -> int | None:
        try:
            return int((self.batches / f"{batch_id}.cancel").stat().st_mtime)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class Store:
    """The whole folder."""

    path: Path

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    def prepare(self) -> None:
        """Make the folder, readable for this user alone; raise `SettingsError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.uploads.mkdir(exist_ok=True)
            write_whole(self.uploads / "written", "")
        except OSError as error:
            raise SettingsError(
                f"{variable('batches_folder')}={str(self.path)!r} cannot be written: {error}"
            ) from error

    def of(self, owner: str) -> KeyFolder:
        """Return the folder of an API key."""
        return KeyFolder(self.path / owner)

    def owners(self) -> list[str]:
        return [
            entry.name
            for entry in _entries(self.path)
            if entry.is_dir() and entry.name != self.uploads.name
        ]

    def remove_expired(self, now_s: float) -> None:
        """Remove files and batches that are no longer kept, and what killed processes left."""
        _remove_old(self.uploads, now_s)
        for owner in self.owners():
            try:
                self.of(owner).remove_expired(now_s)
            except ValidationError as error:  # an unreadable batch may use any of the files
                logger.error(
                    "expired files of key %s are kept: one of its batches cannot be read: %s",
                    owner,
                    error,
                )


def _remove_old(folder: Path, now_s: float, kept: set[str] | Sequence[str] = ()) -> None:
    """Remove entries that have not changed for a day, except those of the ids in `kept`."""
    for entry in _entries(folder):
        with suppress(FileNotFoundError):  # a rename has just completed it
            if entry.name.partition(".")[0] not in kept and entry.stat().st_mtime + DAY_S < now_s:
                Path(entry.path).unlink()


def new_id(prefix: Literal["file-", "batch_"]) -> str:
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"no file {shown(file_id)} of this API key", "file_id")


def _read(folder: Path, given_id: str) -> str | None:
    """Return the object of an id, which a client may have made up, or None."""
    if not _ID.fullmatch(given_id):
        return None
    try:
        return (folder / f"{given_id}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _ids(folder: Path, suffix: str = ".json") -> list[str]:
    return sorted(
        entry.name.removesuffix(suffix) for entry in _entries(folder) if entry.name.endswith(suffix)
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
