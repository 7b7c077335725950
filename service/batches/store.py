"""Files and batches in a folder that any number of gateway processes share.

    batches.sqlite3     the files and batches of all API keys, and which requests are answered
    running.sqlite3     locked by the one process that runs batches
    files/ID.jsonl      content of a file; the output of an unfinished batch grows in it

A file exists if it has a row. Content without a row is an upload in progress or was left by a
killed process. Of an unfinished output only the bytes that its batch counts are valid: a crash may
leave more, which the next write removes. Each call is one transaction and blocks; it raises
`OSError` if the disk fails.
"""

import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pydantic import BaseModel

from service.batches import wire
from service.batches.input_file import MAX_BLANK_LINES, MAX_REQUESTS
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.settings import SettingsError, variable
from tasks.errors import shown

MAX_BYTES_PER_KEY = 10_000_000_000  # all files, outputs included
MAX_FILES_PER_KEY = 10_000
MAX_BATCHES_PER_KEY = 1_000  # including those that ended in the last 30 days
_BUSY_S = 10.0  # wait for another process's transaction
_IS_OPEN = f"status NOT IN {tuple(sorted(wire.ENDED))}"
_SCHEMA = """
    PRAGMA journal_mode = WAL;  -- a file system without shared memory keeps its own mode
    PRAGMA user_version = 1;  -- a write: the start fails if the folder is not writable
    CREATE TABLE IF NOT EXISTS files (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        document TEXT NOT NULL,
        purpose TEXT AS (json_extract(document, '$.purpose')),
        num_bytes INTEGER AS (json_extract(document, '$.bytes')),
        expires_at INTEGER AS (json_extract(document, '$.expires_at'))
    );
    CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, id, num_bytes);
    CREATE TABLE IF NOT EXISTS batches (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        document TEXT NOT NULL,
        status TEXT AS (json_extract(document, '$.batch.status')),
        input_id TEXT AS (json_extract(document, '$.batch.input_file_id')),
        num_bytes INTEGER AS
            (json_extract(document, '$.answers.num_bytes')
            + json_extract(document, '$.errors.num_bytes'))
    );
    CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner, id, num_bytes);
    CREATE INDEX IF NOT EXISTS batches_of_status ON batches (status, id);
    CREATE TABLE IF NOT EXISTS answered (
        batch_id TEXT, line INTEGER, PRIMARY KEY (batch_id, line)
    ) WITHOUT ROWID;
"""
NO_ROOM = wire.BatchError(
    code="storage_limit_exceeded",
    line=None,
    message=(
        f"The files of this API key reached {MAX_BYTES_PER_KEY} bytes: delete some, and send the"
        " rest again."
    ),
)

Table = Literal["files", "batches"]
Purpose = Literal["batch", "batch_output"]


class NoRoom(Exception):
    """The key's files have no room for a line."""


@dataclass(frozen=True, slots=True)
class RenderedLine:
    """A line of an output file, or else of an error file."""

    number: int  # the line of its request in the input file
    is_answer: bool
    data: bytes


class Output(BaseModel):
    """The content of a file that grows until its batch ends."""

    file_id: str
    num_bytes: int = 0


class BatchState(BaseModel):
    """A batch's object and its unfinished output."""

    batch: wire.Batch
    answers: Output
    errors: Output
    output_kept_s: int


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that has not ended."""

    id: str
    owner: str
    status: wire.Status
    num_waiting: int  # requests without an answer; 0 before the file is checked


@dataclass(frozen=True, slots=True)
class Page:
    """The part of a list that a client requests."""

    after: str | None
    limit: int
    is_ascending: bool = False
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """The files and batches of all API keys; `owner` is the hash of a key."""

    path: Path

    def prepare(self) -> None:
        """Create the folder, readable for this user alone; raise `SettingsError`."""
        setting = f"{variable('batches_folder')}={str(self.path)!r}"
        if (self.path / "uploads").exists():
            raise SettingsError(
                f"{setting} was written by an earlier version: let it end its batches, download"
                " the answers, then name an empty folder"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.path / "files").mkdir(exist_ok=True)
            with _disk_errors(), closing(_connected(self._database, _BUSY_S)) as db:
                db.executescript(_SCHEMA)
        except OSError as error:
            raise SettingsError(f"{setting} cannot be written: {error}") from error

    @property
    def _database(self) -> Path:
        return self.path / "batches.sqlite3"

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
        _sync_folder(self.content(file_id).parent)
        file = _new_file(file_id, filename, "batch", num_bytes, kept_s)
        with self._transaction() as db:
            _check_room(db, owner, num_bytes)
            _insert(db, "files", owner, file_id, file)
        return file

    def check_room(self, owner: str) -> None:
        with self._transaction("BEGIN") as db:
            _check_room(db, owner, 1)

    def delete_file(self, owner: str, file_id: str) -> wire.FileDeleted:
        """Raise `not_found`, or `InvalidRequest` for the input of an unfinished batch."""
        with self._transaction() as db:
            _file(db, owner, file_id)
            query = f"SELECT id FROM batches WHERE owner = ? AND input_id = ? AND {_IS_OPEN}"
            for (batch_id,) in db.execute(query, (owner, file_id)):
                problem = f"{file_id} is the input of {batch_id}, which has not ended"
                raise InvalidRequest(problem, "file_id")
            self.content(file_id).unlink(missing_ok=True)  # first: a full disk has room then
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        return wire.FileDeleted(id=file_id)

    def files(self, owner: str, page: Page) -> list[wire.FileObject]:
        """Return one file more than the page has, if there is one."""
        return list(map(wire.FileObject.model_validate_json, self._page("files", owner, page)))

    def batches(self, owner: str, page: Page) -> list[wire.Batch]:
        """Return one batch more than the page has, if there is one."""
        documents = self._page("batches", owner, page)
        return [BatchState.model_validate_json(document).batch for document in documents]

    def _page(self, table: Table, owner: str, page: Page) -> list[str]:
        comparison, order = (">", "ASC") if page.is_ascending else ("<", "DESC")
        query = f"SELECT document FROM {table} WHERE owner = :owner"
        if page.after is not None:
            query += f" AND id {comparison} :after"
        if page.purpose is not None:
            query += " AND purpose = :purpose"
        query += f" ORDER BY id {order} LIMIT :limit + 1"
        with self._transaction("BEGIN") as db:
            try:
                if page.after is not None:
                    _document(db, table, owner, page.after)
            except ServiceError as error:
                problem = f"after is {shown(page.after)}; it must be an id in this list"
                raise InvalidRequest(problem, "after") from error
            return [document for (document,) in db.execute(query, {**asdict(page), "owner": owner})]

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
        state = BatchState(
            batch=batch,
            answers=Output(file_id=new_id("file-")),
            errors=Output(file_id=new_id("file-")),
            output_kept_s=request.output_expires_after.seconds,
        )
        with self._transaction() as db:
            _check_room(db, owner, 1)  # the output needs room
            if _file(db, owner, request.input_file_id).purpose != "batch":
                problem = f"{request.input_file_id} cannot be an input file"
                raise InvalidRequest(f"{problem}: its purpose must be batch", "input_file_id")
            if _usage(db, owner).num_batches >= MAX_BATCHES_PER_KEY:
                usage = f"this key has {MAX_BATCHES_PER_KEY} batches"
                raise Overloaded(
                    f"{usage}; they are removed 30 days after they were created", wire.DAY_S
                )
            _insert(db, "batches", owner, batch.id, state)
        return batch

    def batch(self, owner: str, batch_id: str) -> wire.Batch:
        with self._transaction("BEGIN") as db:
            return _state(db, owner, batch_id).batch

    def cancel(self, owner: str, batch_id: str) -> wire.Batch:
        """Request the cancellation; raise `not_found`, or `InvalidRequest` if it has ended."""
        with self._transaction() as db:
            state = _state(db, owner, batch_id)
            batch = state.batch
            if batch.status in wire.ENDED:
                problem = f"{batch_id} cannot be cancelled: it is {batch.status}"
                raise InvalidRequest(problem, "batch_id")
            batch.status = "cancelling"
            batch.cancelling_at = batch.cancelling_at or int(time.time())
            _save(db, state)
        return batch

    def open_batches(self) -> list[OpenBatch]:
        """Return the batches that have not ended, the oldest first."""
        batches: list[OpenBatch] = []
        query = f"SELECT owner, document FROM batches WHERE {_IS_OPEN} ORDER BY id"
        with self._transaction("BEGIN") as db:
            for owner, document in db.execute(query):
                batch = BatchState.model_validate_json(document).batch
                num_waiting = batch.request_counts.num_waiting
                batches.append(OpenBatch(batch.id, owner, batch.status, num_waiting))
        return batches

    def begin(self, batch: OpenBatch, num_requests: int) -> None:
        """Note that the input file was checked."""
        with self._changed(batch) as (_, state):
            state.batch.in_progress_at = int(time.time())
            state.batch.request_counts.total = num_requests
            if state.batch.cancelling_at is None:
                state.batch.status = "in_progress"

    def is_answered(self, batch: OpenBatch) -> bytearray:
        """Return for each line number of the input file whether its request has an answer."""
        flags = bytearray(MAX_REQUESTS + MAX_BLANK_LINES + 2)
        query = "SELECT line FROM answered WHERE batch_id = ?"
        with self._transaction("BEGIN") as db:
            for (number,) in db.execute(query, (batch.id,)):
                flags[number] = 1
        return flags

    def append(self, batch: OpenBatch, lines: Sequence[RenderedLine]) -> wire.Batch:
        """Write the first lines for which the key has room; raise `NoRoom` if some have none."""
        with self._changed(batch) as (db, state):
            num_bytes = _usage(db, batch.owner).num_bytes
            fitting: list[RenderedLine] = []
            for line in lines:
                num_bytes += len(line.data)
                if num_bytes <= MAX_BYTES_PER_KEY:
                    fitting.append(line)
            answers = [line.data for line in fitting if line.is_answer]
            errors = [line.data for line in fitting if not line.is_answer]
            self._write(state.answers, answers)
            self._write(state.errors, errors)
            state.batch.request_counts.completed += len(answers)
            state.batch.request_counts.failed += len(errors)
            rows = [(batch.id, line.number) for line in fitting]
            db.executemany("INSERT INTO answered VALUES (?, ?)", rows)
        if len(fitting) < len(lines):
            raise NoRoom
        return state.batch

    def begin_end(self, batch: OpenBatch, *, is_full: bool) -> wire.Batch:
        """Note that no further request is run; one that was not run in time has expired."""
        with self._changed(batch) as (_, state):
            now_s = int(time.time())
            ending = state.batch
            ending.finalizing_at = ending.finalizing_at or now_s
            if ending.cancelling_at is None:
                ending.status = "finalizing"
                if ending.request_counts.num_waiting and not is_full:
                    ending.expired_at = ending.expired_at or now_s
        return ending

    def end(self, batch: OpenBatch, errors: list[wire.BatchError]) -> wire.Batch:
        """Make the files of a batch and set its last status; with errors it has failed."""
        with self._changed(batch) as (db, state):
            state.batch.output_file_id = self._output_file(db, batch, state, state.answers)
            state.batch.error_file_id = self._output_file(db, batch, state, state.errors)
            _set_last_status(state.batch, errors)
            db.execute("DELETE FROM answered WHERE batch_id = ?", (batch.id,))
        return state.batch

    def remove_expired(self, now_s: float) -> None:
        """Remove files and batches that are no longer kept, and what killed processes left."""
        with self._transaction() as db:
            db.execute(
                f"DELETE FROM batches WHERE NOT ({_IS_OPEN})"
                " AND json_extract(document, '$.batch.created_at') < ?",
                (now_s - wire.MAX_KEPT_S,),
            )
            is_expired = (
                f"expires_at < ? AND id NOT IN (SELECT input_id FROM batches WHERE {_IS_OPEN})"
            )
            query = f"SELECT id FROM files WHERE {is_expired}"
            for (file_id,) in db.execute(query, (now_s,)):
                self.content(file_id).unlink(missing_ok=True)  # first: a full disk has room then
            db.execute(f"DELETE FROM files WHERE {is_expired}", (now_s,))
            used = {file_id for (file_id,) in db.execute("SELECT id FROM files")}
            for (document,) in db.execute(f"SELECT document FROM batches WHERE {_IS_OPEN}"):
                state = BatchState.model_validate_json(document)
                used |= {state.answers.file_id, state.errors.file_id}
        with os.scandir(self.path / "files") as entries:
            for entry in entries:
                file_id = entry.name.removesuffix(".jsonl")
                with suppress(FileNotFoundError):  # deleted by its client meanwhile
                    if file_id not in used and entry.stat().st_mtime + wire.DAY_S < now_s:
                        os.unlink(entry)

    def lock(self) -> sqlite3.Connection | None:
        """Keep other processes from running batches until the lock is closed; None if one does.

        The lock is a transaction of SQLite, which the kernel ends if the process dies.
        """
        with _disk_errors():
            lock = _connected(self.path / "running.sqlite3", timeout_s=0)
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                lock.close()
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                return None
            return lock

    def _write(self, output: Output, lines: Sequence[bytes]) -> None:
        """Write lines durably behind the bytes that count."""
        if not lines:
            return
        path = self.content(output.file_id)
        with path.open("r+b" if output.num_bytes else "wb") as file:
            file.seek(output.num_bytes)  # over what a crash left
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        if not output.num_bytes:
            _sync_folder(path.parent)
        output.num_bytes += sum(map(len, lines))

    def _output_file(
        self, db: sqlite3.Connection, batch: OpenBatch, state: BatchState, output: Output
    ) -> str | None:
        if not output.num_bytes:
            return None
        os.truncate(self.content(output.file_id), output.num_bytes)
        file_id, num_bytes = output.file_id, output.num_bytes
        name = f"{batch.id}_{'output' if output is state.answers else 'error'}.jsonl"
        file = _new_file(file_id, name, "batch_output", num_bytes, state.output_kept_s)
        _insert(db, "files", batch.owner, file_id, file)
        output.num_bytes = 0
        return file_id

    @contextmanager
    def _changed(self, batch: OpenBatch) -> Iterator[tuple[sqlite3.Connection, BatchState]]:
        """Save the changes to the state of a batch, if there are any."""
        with self._transaction() as db:
            state = _state(db, batch.owner, batch.id)
            unchanged = state.model_copy(deep=True)
            yield db, state
            if state != unchanged:
                _save(db, state)

    @contextmanager
    def _transaction(
        self, begin: Literal["BEGIN", "BEGIN IMMEDIATE"] = "BEGIN IMMEDIATE"
    ) -> Iterator[sqlite3.Connection]:
        """Connect for one transaction, which an exception rolls back: processes may be forked."""
        with _disk_errors(), closing(_connected(self._database, _BUSY_S)) as db:
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


def _connected(path: Path, timeout_s: float) -> sqlite3.Connection:
    # transactions are explicit, and several threads use a connection one after the other
    return sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)


class Usage(NamedTuple):
    """The files and batches of a key, and the bytes of files and unfinished outputs."""

    num_files: int
    num_batches: int
    num_bytes: int


def _usage(db: sqlite3.Connection, owner: str) -> Usage:
    query = "SELECT count(*), coalesce(sum(num_bytes), 0) FROM"
    num_files, file_bytes = db.execute(f"{query} files WHERE owner = ?", (owner,)).fetchone()
    num_batches, output_bytes = db.execute(f"{query} batches WHERE owner = ?", (owner,)).fetchone()
    return Usage(num_files, num_batches, file_bytes + output_bytes)


def _check_room(db: sqlite3.Connection, owner: str, num_bytes: int) -> None:
    """Raise `Overloaded` if another file of `num_bytes` would exceed a limit of the key."""
    used = _usage(db, owner)
    if used.num_files >= MAX_FILES_PER_KEY or used.num_bytes + num_bytes > MAX_BYTES_PER_KEY:
        files = f"{used.num_files} of {MAX_FILES_PER_KEY} files"
        usage = f"{files} of {used.num_bytes} of {MAX_BYTES_PER_KEY} bytes"
        raise Overloaded(f"this key has {usage}; delete some", 60)


def _document(db: sqlite3.Connection, table: Table, owner: str, object_id: str) -> str:
    query = f"SELECT document FROM {table} WHERE id = ? AND owner = ?"
    for (document,) in db.execute(query, (object_id, owner)):
        return str(document)
    raise _not_found("file" if table == "files" else "batch", object_id)


def _not_found(noun: str, object_id: str) -> ServiceError:
    message = f"no {noun} {shown(object_id)} of this API key"
    return ServiceError(message, f"{noun}_id", "not_found")


def _file(db: sqlite3.Connection, owner: str, file_id: str) -> wire.FileObject:
    return wire.FileObject.model_validate_json(_document(db, "files", owner, file_id))


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
    db: sqlite3.Connection, table: Table, owner: str, object_id: str, document: BaseModel
) -> None:
    query = f"INSERT INTO {table} (id, owner, document) VALUES (?, ?, ?)"
    db.execute(query, (object_id, owner, document.model_dump_json()))


def _state(db: sqlite3.Connection, owner: str, batch_id: str) -> BatchState:
    return BatchState.model_validate_json(_document(db, "batches", owner, batch_id))


def _save(db: sqlite3.Connection, state: BatchState) -> None:
    query = "UPDATE batches SET document = ? WHERE id = ?"
    db.execute(query, (state.model_dump_json(), state.batch.id))


def _sync_folder(path: Path) -> None:
    """Make new names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _set_last_status(batch: wire.Batch, errors: list[wire.BatchError]) -> None:
    now_s = int(time.time())
    is_whole = batch.in_progress_at is not None and not batch.request_counts.num_waiting
    if errors:
        batch.status = "failed"
        batch.failed_at = now_s
        batch.expired_at = None
        batch.errors = wire.BatchErrors(data=errors)
    elif batch.expired_at is not None:
        batch.status = "expired"
    elif batch.cancelling_at is not None and not is_whole:
        batch.status = "cancelled"
        batch.cancelled_at = now_s
    else:
        batch.status = "completed"
        batch.completed_at = now_s
        batch.cancelling_at = None
