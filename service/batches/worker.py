"""Takes each batch from validation to its end, in the one process that holds the lock of the store.

    validating ─> in_progress ─> finalizing ─> completed
        └─> failed    ├─> finalizing ─> expired         the rest gets batch_expired
                      └─> cancelling ─> cancelled       requests in flight end, the rest is not run

Everything that a later process needs is in the store: after a crash it continues behind what the output has.
"""

import asyncio
import fcntl
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from service.admission.traffic_gaps import TrafficGaps
from service.batches.execution import BatchRun, Executor
from service.batches.journal import Journal
from service.batches.lines import OutputError, OutputLine, unanswered
from service.batches.store import BatchState, KeyFolder, Store
from service.batches.validation import Checked, check_file
from service.batches.wire import ENDED, BatchError, BatchErrors, RequestCounts
from service.images.decoding import in_thread
from service.inference.core import Core
from service.settings import Settings
from service.telemetry.metrics import BATCH_REQUESTS_WAITING

logger = logging.getLogger(__name__)

_SCAN_S = 1.0  # between looks for new batches, and attempts to get the lock
_SAVE_S = 0.5  # between writes of a batch's answers
_RETRY_S = 10.0  # after an error of the disk
_CLEAN_S = 3600.0
_EXPIRED_AT_A_TIME = 1000
_DEFECT = "The service failed; the cause is in its log under the id of the batch."


@dataclass(frozen=True, slots=True)
class _Job:
    """A batch at work."""

    folder: KeyFolder
    state: BatchState
    journal: Journal
    run: BatchRun


class BatchWorker:
    """The batches of a store, run while this process holds its lock."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self._store = store
        self._executor = Executor(core, gaps, settings.request_timeout_s)
        self._max_line_bytes = settings.max_body_bytes
        self._known = set[str]()  # batches that were begun, ended ones included
        self._waiting: dict[str, int] = {}  # requests of each batch without an answer
        self._is_stopping = False
        self._leading: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._leading = asyncio.create_task(self._lead())

    async def stop(self) -> None:
        """Cancel what is in flight, write what is answered, and release the lock: another process goes on."""
        self._is_stopping = True
        if self._leading is not None:
            self._leading.cancel()
            with suppress(asyncio.CancelledError):
                await self._leading

    async def _lead(self) -> None:
        async with _locked(self._store.path / "lock"):
            while not self._is_stopping:  # a group whose task fails while it is cancelled raises that failure instead
                logger.info("running the batches in %s", self._store.path)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._executor.run())
                        group.create_task(self._look_for_batches(group))
                except ExceptionGroup:  # a defect must not end all batches until the next start
                    logger.exception("the batches stopped, and continue in %g s", _RETRY_S)
                self._known.clear()
                await asyncio.sleep(_RETRY_S)

    async def _look_for_batches(self, group: asyncio.TaskGroup) -> None:
        next_clean_s = time.monotonic()
        while True:
            try:
                for folder, batch_id in await in_thread(self._new_batches):
                    self._known.add(batch_id)
                    group.create_task(self._complete(folder, batch_id))
                if time.monotonic() > next_clean_s:
                    next_clean_s = time.monotonic() + _CLEAN_S
                    await in_thread(self._store.remove_expired, time.time())
            except OSError as error:
                logger.error("the folder of batches cannot be read: %s", error)
            BATCH_REQUESTS_WAITING.set(sum(self._waiting.values()))
            await asyncio.sleep(_SCAN_S)

    def _new_batches(self) -> list[tuple[KeyFolder, str]]:
        folders = map(self._store.of, self._store.owners())
        return [(folder, each) for folder in folders for each in folder.batch_ids() if each not in self._known]

    async def _complete(self, folder: KeyFolder, batch_id: str) -> None:
        """Bring a batch to its end, however often the disk fails."""
        while True:
            try:
                state = await in_thread(folder.state, batch_id)
                if state.batch.status not in ENDED:
                    await self._complete_state(folder, state)
            except OSError as error:
                logger.error("batch %s waits %g s: %s", batch_id, _RETRY_S, error)
                await asyncio.sleep(_RETRY_S)
            except Exception:  # what is stored cannot be read
                logger.exception("batch %s cannot be run", batch_id)
                return
            else:
                return

    async def _complete_state(self, folder: KeyFolder, state: BatchState) -> None:
        """Validate and run a batch; a defect fails it. Raise `OSError`."""
        try:
            if await self._is_valid(folder, state):
                await self._run(folder, state)
        except OSError:
            raise
        except Exception:
            logger.exception("batch %s failed", state.batch.id)
            await in_thread(_fail, folder, state, [BatchError(code="internal", line=None, message=_DEFECT)])

    async def _is_valid(self, folder: KeyFolder, state: BatchState) -> bool:
        """Return True if the input file is valid, which is checked once."""
        batch = state.batch
        if batch.in_progress_at is not None:
            return True
        checked = await self._checked(folder, state)
        if checked.errors:
            await in_thread(_fail, folder, state, checked.errors)
            return False
        batch.status, batch.in_progress_at = "in_progress", int(time.time())
        batch.request_counts = RequestCounts(total=checked.num_lines)
        await in_thread(folder.save, state)
        return True

    async def _checked(self, folder: KeyFolder, state: BatchState) -> Checked:
        batch = state.batch
        try:
            return await check_file(folder.content(batch.input_file_id), batch.endpoint, self._max_line_bytes)
        except FileNotFoundError:
            message = f"The file {batch.input_file_id} was deleted."
            return Checked(0, [BatchError(code="file_not_found", line=None, message=message)])

    async def _run(self, folder: KeyFolder, state: BatchState) -> None:
        """Answer the requests that have no answer yet, until the batch ends."""
        batch = state.batch
        content = folder.content
        journal = await in_thread(Journal.open, content(state.output_id), content(state.error_id))
        run = BatchRun(
            folder.path.name, batch.id, content(batch.input_file_id), self._max_line_bytes, frozenset(journal.done)
        )
        job = _Job(folder, state, journal, run)
        logger.info("batch %s: %d of %d requests are answered", batch.id, len(journal.done), batch.request_counts.total)
        self._executor.add(run)
        try:
            while not run.is_over:
                await asyncio.sleep(_SAVE_S)
                await self._save(job)
                run.is_stopped = run.is_stopped or await in_thread(_is_to_end, folder, state)
        finally:
            self._executor.remove(run)
            await self._save(job)
        if run.failure is not None:
            raise run.failure
        await in_thread(_finish, job, self._max_line_bytes)
        self._waiting.pop(batch.id, None)
        logger.info("batch %s %s", batch.id, batch.status)

    async def _save(self, job: _Job) -> None:
        """Write the new answers and their number."""
        if lines := job.run.take_output():
            await in_thread(job.journal.append, lines)
            _count(job)
            await in_thread(job.folder.save, job.state)
        counts = job.state.batch.request_counts
        self._waiting[job.state.batch.id] = counts.total - counts.completed - counts.failed


def _count(job: _Job) -> None:
    counts = job.state.batch.request_counts
    counts.completed, counts.failed = len(job.journal.answered), len(job.journal.failed)


def _is_to_end(folder: KeyFolder, state: BatchState) -> bool:
    return time.time() >= state.batch.expires_at or folder.is_cancelling(state.batch.id)


def _fail(folder: KeyFolder, state: BatchState, errors: list[BatchError]) -> None:
    state.batch.status, state.batch.failed_at = "failed", int(time.time())
    state.batch.errors = BatchErrors(data=errors)
    folder.save(state)


def _finish(job: _Job, max_line_bytes: int) -> None:
    """Make the files of a batch that has ended; repeated as a whole if the process is killed meanwhile."""
    folder, state, batch = job.folder, job.state, job.state.batch
    now_s = int(time.time())
    batch.cancelling_at = folder.state(batch.id).batch.cancelling_at
    is_whole = len(job.journal.done) >= batch.request_counts.total
    if batch.cancelling_at is None and not is_whole:
        batch.expired_at = batch.expired_at or now_s
    batch.finalizing_at = batch.finalizing_at or now_s
    batch.status = "finalizing"
    folder.save(state)
    if batch.expired_at is not None:
        _append_expired(job, max_line_bytes)
    _count(job)
    kept_s = state.output_kept_s
    if job.journal.answered:
        folder.add_file(state.output_id, f"{batch.id}_output.jsonl", "batch_output", kept_s)
        batch.output_file_id = state.output_id
    if job.journal.failed:
        folder.add_file(state.error_id, f"{batch.id}_error.jsonl", "batch_output", kept_s)
        batch.error_file_id = state.error_id
    if batch.expired_at is not None:
        batch.status = "expired"
    elif batch.cancelling_at is not None and not is_whole:
        batch.status, batch.cancelled_at = "cancelled", now_s
    else:
        batch.status, batch.completed_at, batch.cancelling_at = "completed", now_s, None
    folder.save(state)


def _append_expired(job: _Job, max_line_bytes: int) -> None:
    """Append an error for each request that was not run."""
    lines: list[OutputLine] = []
    for line in unanswered(job.folder.content(job.state.batch.input_file_id), max_line_bytes, job.journal.done):
        line_id = uuid.uuid4().hex
        lines.append(
            OutputLine(id=f"batch_req_{line_id}", custom_id=line.custom_id, response=None, error=OutputError())
        )
        if len(lines) == _EXPIRED_AT_A_TIME:
            job.journal.append(lines)
            lines = []
    job.journal.append(lines)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock of the store, which the kernel releases if the process dies; wait until it is free.

    A POSIX lock: unlike one of flock(2), a child that was forked meanwhile does not hold it too.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_SCAN_S)
        yield
