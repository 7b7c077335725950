"""Files and batches in a folder that any number of gateway processes share.

    batches.sqlite3     the files and batches of all API keys, and the requests of unfinished
                        batches with their answers
    running.lock        locked by the one process that runs batches
    files/ID.jsonl      content of a file

A file exists if it has a row. Content without a row is an upload in progress, the output of a batch
that is ending, or left by a killed process. Each call is one transaction and blocks; it raises
`OSError` if the disk fails.
"""

import errno
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel

from service.batches import wire
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.settings import SettingsError, variable
from tasks.errors import shown

MAX_BYTES_PER_KEY = 10_000_000_000  # all files, outputs included
MAX_FILES_PER_KEY = 10_000
MAX_BATCHES_PER_KEY = 1_000  # including those that ended in the last 30 days
_DATABASE = "batches.sqlite3"
_LOCK = "running.lock"
_BUSY_S = 10.0  # wait for another process's transaction
_IS_OPEN = f"status NOT IN {tuple(sorted(wire.ENDED))}"
_SCHEMA = """
    PRAGMA auto_vacuum = FULL;  -- the room of ended batches is given back
    PRAGMA journal_mode = WAL;  -- a file system without shared memory keeps its own mode
    PRAGMA user_version = 1;  -- a write: the start fails if the folder is not writable
    CREATE TABLE IF NOT EXISTS objects (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        owner TEXT NOT NULL,
        document TEXT NOT NULL,
        num_bytes INTEGER AS (json_extract(document, '$.bytes')),
        expires_at INTEGER AS (json_extract(document, '$.expires_at')),
        status TEXT AS (json_extract(document, '$.batch.status')),  -- NULL: a file
        input_id TEXT AS (json_extract(document, '$.batch.input_file_id'))
    );
    CREATE INDEX IF NOT EXISTS objects_of_owner ON objects (owner, kind, id, num_bytes);
    CREATE INDEX IF NOT EXISTS batches_of_status ON objects (status, id);
    CREATE TABLE IF NOT EXISTS requests (
        batch_id TEXT NOT NULL,
        line INTEGER NOT NULL,
        start INTEGER NOT NULL,
        num_bytes INTEGER NOT NULL,
        is_answer INTEGER,
        output BLOB,  -- the line of an output file, or else of an error file
        PRIMARY KEY (batch_id, line)
    );
"""
NO_ROOM = wire.BatchError(
    code="storage_limit_exceeded",
    line=None,
    message=(
        f"The files of this API key reached {MAX_BYTES_PER_KEY} bytes: delete some, and send the"
        " rest again."
    ),
)

Kind = Literal["file", "batch"]
Purpose = Literal["batch", "batch_output"]


class NoRoom(Exception):
    """The key's files have no room for a line."""


@dataclass(frozen=True, slots=True)
class LinePlace:
    """Where a request is in its input file."""

    number: int
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class OutputLine:
    """A line of an output file, or else of an error file."""

    number: int  # the line of its request in the input file
    is_answer: bool
    data: bytes


class BatchState(BaseModel):
    """A batch, the hash of its API key, and the bytes of its unfinished output."""

    batch: wire.Batch
    owner: str
    output_kept_s: int
    bytes: int = 0

    @property
    def id(self) -> str:
        return self.batch.id


@dataclass(frozen=True, slots=True)
class Store:
    """The files and batches of all API keys; `owner` is the hash of a key."""

    path: Path

    def prepare(self) -> None:
        """Create the folder, readable for this user alone; raise `SettingsError`."""
        setting = f"{variable('batches_folder')}={str(self.path)!r}"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "files").mkdir(exist_ok=True)
            with _disk_errors(), closing(self._connected()) as db:
                db.executescript(_SCHEMA)
        except OSError as error:
            raise SettingsError(f"{setting} cannot be written: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        # transactions are explicit
        return sqlite3.connect(self.path / _DATABASE, timeout=_BUSY_S, isolation_level=None)

    def content(self, file_id: str) -> Path:
        """Return the path of a file's content; `file_id` is never a client's text."""
        return self.path / "files" / f"{file_id}.jsonl"

    def file(self, owner: str, file_id: str) -> wire.FileObject:
        with self._transaction("BEGIN") as db:
            return _file(db, owner, file_id)

    def open(self, owner: str, file_id: str) -> BinaryIO:
        """Open a file's content, which stays readable if the file is deleted; raise `not_found`."""
        file = self.file(owner, file_id)
        try:
            return self.content(file.id).open("rb")
        except FileNotFoundError as error:  # deleted meanwhile
            raise _not_found("file", file_id) from error

    def add_file(self, owner: str, file_id: str, filename: str, kept_s: int) -> wire.FileObject:
        """Make a file of content in its place; raise `Overloaded` above a limit of the key."""
        num_bytes = self.content(file_id).stat().st_size
        file = _new_file(file_id, filename, "batch", num_bytes, kept_s)
        with self._transaction() as db:
            _check_room(db, owner, num_bytes)
            _insert(db, "file", owner, file)
        return file

    def check_room(self, owner: str) -> None:
        with self._transaction("BEGIN") as db:
            _check_room(db, owner, 1)

    def delete_file(self, owner: str, file_id: str) -> wire.FileDeleted:
        """Raise `not_found`, or `InvalidRequest` for the input of an unfinished batch."""
        with self._transaction() as db:
            _file(db, owner, file_id)
            query = f"SELECT id FROM objects WHERE owner = ? AND input_id = ? AND {_IS_OPEN}"
            for (batch_id,) in db.execute(query, (owner, file_id)):
                problem = f"{file_id} is the input of {batch_id}, which has not ended"
                raise InvalidRequest(problem, "file_id")
            self.content(file_id).unlink(missing_ok=True)  # first: a full disk has room then
            db.execute("DELETE FROM objects WHERE id = ?", (file_id,))
        return wire.FileDeleted(id=file_id)

    def files(self, owner: str) -> list[wire.FileObject]:
        """Return the files of a key, the newest first."""
        return list(map(wire.FileObject.model_validate_json, self._documents("file", owner)))

    def batches(self, owner: str) -> list[wire.Batch]:
        """Return the batches of a key, the newest first."""
        states = map(BatchState.model_validate_json, self._documents("batch", owner))
        return [state.batch for state in states]

    def _documents(self, kind: Kind, owner: str) -> list[str]:
        query = "SELECT document FROM objects WHERE owner = ? AND kind = ? ORDER BY id DESC"
        return [document for (document,) in self._rows(query, owner, kind)]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._transaction("BEGIN") as db:
            return db.execute(query, values).fetchall()

    def create_batch(self, owner: str, request: wire.BatchRequest) -> wire.Batch:
        """Raise `not_found` for the input, or `Overloaded` above a limit of the key."""
        now_s = int(time.time())
        batch = wire.Batch(
            id=new_id("batch_"),
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            created_at=now_s,
            expires_at=now_s + wire.DAY_S,
            metadata=request.metadata,
        )
        kept_s = request.output_expires_after.seconds
        state = BatchState(batch=batch, owner=owner, output_kept_s=kept_s)
        with self._transaction() as db:
            _check_room(db, owner, 1)  # the output needs room
            if _file(db, owner, request.input_file_id).purpose != "batch":
                problem = f"{request.input_file_id} cannot be an input file"
                raise InvalidRequest(f"{problem}: its purpose must be batch", "input_file_id")
            if _usage(db, owner)[1] >= MAX_BATCHES_PER_KEY:
                problem = f"this key has {MAX_BATCHES_PER_KEY} batches"
                raise Overloaded(f"{problem}; each is removed after 30 days", wire.DAY_S)
            _insert(db, "batch", owner, state)
        return batch

    def batch(self, owner: str, batch_id: str) -> wire.Batch:
        with self._transaction("BEGIN") as db:
            return _state(db, owner, batch_id).batch

    def cancel(self, owner: str, batch_id: str) -> wire.Batch:
        """Request the cancellation; raise `not_found`, or `InvalidRequest` if it has ended."""
        with self._changed(owner, batch_id) as (_, current):
            batch = current.batch
            if batch.status in wire.ENDED:
                problem = f"{batch_id} cannot be cancelled: it is {batch.status}"
                raise InvalidRequest(problem, "batch_id")
            batch.status = "cancelling"
            batch.cancelling_at = batch.cancelling_at or int(time.time())
        return batch

    def open_batches(self) -> list[BatchState]:
        """Return the batches that have not ended, the oldest first."""
        query = f"SELECT document FROM objects WHERE {_IS_OPEN} ORDER BY id"
        return [BatchState.model_validate_json(document) for (document,) in self._rows(query)]

    def begin(self, state: BatchState, places: Sequence[LinePlace]) -> None:
        """Keep the requests of an input file that was checked."""
        rows = [(state.id, place.number, place.start, place.num_bytes) for place in places]
        with self._changed(state.owner, state.id) as (db, current):
            current.batch.in_progress_at = int(time.time())
            current.batch.request_counts.total = len(places)
            if current.batch.cancelling_at is None:
                current.batch.status = "in_progress"
            columns = "batch_id, line, start, num_bytes"
            db.executemany(f"INSERT INTO requests ({columns}) VALUES (?, ?, ?, ?)", rows)

    def unanswered(self, state: BatchState) -> list[LinePlace]:
        query = (
            "SELECT line, start, num_bytes FROM requests"
            " WHERE batch_id = ? AND is_answer IS NULL ORDER BY line"
        )
        return [LinePlace(*row) for row in self._rows(query, state.id)]

    def append(self, state: BatchState, lines: Sequence[OutputLine]) -> wire.Batch:
        """Keep lines of an unfinished output; raise `NoRoom` if they exceed the key's bytes."""
        rows = [(line.is_answer, line.data, state.id, line.number) for line in lines]
        num_answers = sum(line.is_answer for line in lines)
        with self._changed(state.owner, state.id) as (db, current):
            num_bytes = sum(len(line.data) for line in lines)
            if lines and _usage(db, state.owner)[2] + num_bytes > MAX_BYTES_PER_KEY:
                raise NoRoom
            current.bytes += num_bytes
            current.batch.request_counts.completed += num_answers
            current.batch.request_counts.failed += len(lines) - num_answers
            query = "UPDATE requests SET is_answer = ?, output = ? WHERE batch_id = ? AND line = ?"
            db.executemany(query, rows)
        return current.batch

    def end(self, state: BatchState, errors: list[wire.BatchError]) -> wire.Batch:
        output = self._written(state, "output", is_answer=True)
        error_output = self._written(state, "error", is_answer=False)
        with self._changed(state.owner, state.id) as (db, current):
            current.bytes = 0
            if output is not None:
                current.batch.output_file_id = output.id
                _insert(db, "file", state.owner, output)
            if error_output is not None:
                current.batch.error_file_id = error_output.id
                _insert(db, "file", state.owner, error_output)
            _set_last_status(current.batch, errors)
            db.execute("DELETE FROM requests WHERE batch_id = ?", (state.id,))
        return current.batch

    def remove_expired(self, now_s: float) -> None:
        with self._transaction() as db:
            is_old = "json_extract(document, '$.batch.created_at') < ?"
            query = f"DELETE FROM objects WHERE NOT ({_IS_OPEN}) AND {is_old}"
            db.execute(query, (now_s - wire.MAX_KEPT_S,))
            inputs = f"SELECT input_id FROM objects WHERE {_IS_OPEN}"
            is_expired = f"expires_at < ? AND id NOT IN ({inputs})"
            query = f"SELECT id FROM objects WHERE {is_expired}"
            for (file_id,) in db.execute(query, (now_s,)):
                self.content(file_id).unlink(missing_ok=True)  # first: a full disk has room then
            db.execute(f"DELETE FROM objects WHERE {is_expired}", (now_s,))
            query = "SELECT id FROM objects WHERE kind = 'file'"
            used = {file_id for (file_id,) in db.execute(query)}
        with os.scandir(self.path / "files") as entries:
            for entry in entries:
                file_id = entry.name.removesuffix(".jsonl")
                with suppress(FileNotFoundError):  # deleted by its client meanwhile
                    if file_id not in used and entry.stat().st_mtime + wire.DAY_S < now_s:
                        os.unlink(entry)

    def lock(self) -> BinaryIO | None:
        """Keep other processes from running batches until the file is closed; None if one does."""
        file = (self.path / _LOCK).open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def _written(
        self, state: BatchState, name: Literal["output", "error"], *, is_answer: bool
    ) -> wire.FileObject | None:
        """Write the content of an output file, durably; None if it has no lines."""
        file_id = f"file-{state.id.removeprefix('batch_')}{name}"  # the same after a crash
        path = self.content(file_id)
        query = "SELECT output FROM requests WHERE batch_id = ? AND is_answer = ? ORDER BY line"
        with self._transaction("BEGIN") as db, path.open("wb") as file:
            file.writelines(data for (data,) in db.execute(query, (state.id, is_answer)))
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        if not num_bytes:
            path.unlink()
            return None
        file_name = f"{state.id}_{name}.jsonl"
        return _new_file(file_id, file_name, "batch_output", num_bytes, state.output_kept_s)

    @contextmanager
    def _changed(
        self, owner: str, batch_id: str
    ) -> Iterator[tuple[sqlite3.Connection, BatchState]]:
        """Save the changes to the current state of a batch, if there are any."""
        with self._transaction() as db:
            current = _state(db, owner, batch_id)
            unchanged = current.model_copy(deep=True)
            yield db, current
            if current != unchanged:
                query = "UPDATE objects SET document = ? WHERE id = ?"
                db.execute(query, (current.model_dump_json(), batch_id))

    @contextmanager
    def _transaction(
        self, begin: Literal["BEGIN", "BEGIN IMMEDIATE"] = "BEGIN IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        """Connect for one transaction, which an exception rolls back: processes may be forked."""
        with _disk_errors(), closing(self._connected()) as db:
            db.execute("PRAGMA synchronous = FULL")  # what was accepted outlives a loss of power
            db.execute(begin)
            yield db
            db.execute("COMMIT")


def new_id(prefix: Literal["file-", "batch_"]) -> str:
    """Return an id that begins with its time, so that ids sort by age."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error)) from error


def _usage(db: sqlite3.Connection, owner: str) -> tuple[int, int, int]:
    """Return the numbers of files and batches of a key, and of their bytes."""
    counts = "coalesce(sum(kind = 'file'), 0), coalesce(sum(kind = 'batch'), 0)"
    query = f"SELECT {counts}, coalesce(sum(num_bytes), 0) FROM objects WHERE owner = ?"
    num_files, num_batches, num_bytes = db.execute(query, (owner,)).fetchone()
    return num_files, num_batches, num_bytes


def _check_room(db: sqlite3.Connection, owner: str, num_bytes: int) -> None:
    """Raise `Overloaded` if another file of `num_bytes` would exceed a limit of the key."""
    num_files, _, used_bytes = _usage(db, owner)
    if num_files >= MAX_FILES_PER_KEY or used_bytes + num_bytes > MAX_BYTES_PER_KEY:
        limits = f"{MAX_FILES_PER_KEY} files of {MAX_BYTES_PER_KEY} bytes together"
        raise Overloaded(f"this key has the maximum of {limits}; delete some", 60)


def _document(db: sqlite3.Connection, kind: Kind, owner: str, object_id: str) -> str:
    query = "SELECT document FROM objects WHERE id = ? AND kind = ? AND owner = ?"
    for (document,) in db.execute(query, (object_id, kind, owner)):
        return str(document)
    raise _not_found(kind, object_id)


def _not_found(kind: Kind, object_id: str) -> ServiceError:
    return ServiceError(f"no {kind} {shown(object_id)} of this API key", f"{kind}_id", "not_found")


def _file(db: sqlite3.Connection, owner: str, file_id: str) -> wire.FileObject:
    return wire.FileObject.model_validate_json(_document(db, "file", owner, file_id))


def _new_file(
    file_id: str, filename: str, purpose: Purpose, num_bytes: int, kept_s: int
) -> wire.FileObject:
    now_s = int(time.time())
    return wire.FileObject(
        id=file_id,
        bytes=num_bytes,
        created_at=now_s,
        expires_at=now_s + kept_s,
        filename=filename,
        purpose=purpose,
    )


def _insert(
    db: sqlite3.Connection, kind: Kind, owner: str, document: wire.FileObject | BatchState
) -> None:
    query = "INSERT INTO objects (id, kind, owner, document) VALUES (?, ?, ?, ?)"
    db.execute(query, (document.id, kind, owner, document.model_dump_json()))


def _state(db: sqlite3.Connection, owner: str, batch_id: str) -> BatchState:
    return BatchState.model_validate_json(_document(db, "batch", owner, batch_id))


def _set_last_status(batch: wire.Batch, errors: list[wire.BatchError]) -> None:
    now_s = int(time.time())
    is_whole = batch.in_progress_at is not None and not batch.request_counts.num_waiting
    if batch.in_progress_at is not None:
        batch.finalizing_at = now_s
    if errors:
        batch.status = "failed"
        batch.errors = wire.BatchErrors(data=errors)
    elif batch.cancelling_at is not None and not is_whole:
        batch.status = "cancelled"
    elif now_s >= batch.expires_at:
        batch.status = "expired"
    else:
        batch.status = "completed"
        batch.cancelling_at = None
    setattr(batch, f"{batch.status}_at", now_s)
