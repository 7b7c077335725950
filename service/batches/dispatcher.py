"""Begins each unfinished batch of a store in its turn.

    validating ─> in_progress ─> finalizing ─> completed
        ├─> failed    ├─> finalizing ─> expired         the rest gets batch_expired
        └─> cancelled ├─> finalizing ─> failed          the files of its key have no room for more
                      └─> cancelling ─> cancelled       requests in flight end, the rest is not run

One input file is checked at a time, and of each API key one batch gives its requests to the
executor: the next one begins when they are in flight or answered. A batch that waits is an id in
memory, whatever its files. Everything that a later process needs is in the store: after a crash it
continues behind what the output has.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress

from service.batches.execution import BatchRun, Executor
from service.batches.job import Job, NoRoom
from service.batches.store import BatchState, KeyFolder, Store
from service.batches.validation import Checked, check_file
from service.batches.wire import ENDED, BatchError, BatchErrors, RequestCounts
from service.errors import NotFound
from service.images.decoding import in_thread
from service.telemetry.metrics import BATCH_REQUESTS_WAITING

logger = logging.getLogger(__name__)

RETRY_S = 10.0  # pause after a disk error
_SCAN_S = 1.0  # interval of scans for new batches
_SAVE_S = 0.5  # interval of writes of a batch's answers
_CLEAN_S = 3600.0
_DEFECT = "The service failed; the cause is in its log under the id of the batch."

Work = Callable[[KeyFolder, BatchState], Awaitable[None]]


class WaitingBatches:
    """The ids of waiting batches: API keys take turns, and a key's oldest is first."""

    def __init__(self) -> None:
        self._ids: dict[str, set[str]] = {}
        self._turns = itertools.count(1)
        self._last_turn: dict[str, int] = {}

    def add(self, owner: str, batch_id: str) -> None:
        self._ids.setdefault(owner, set()).add(batch_id)

    def remove(self, owner: str, batch_id: str) -> bool:
        """Remove a batch; return False if it does not wait."""
        is_waiting = batch_id in self._ids.get(owner, ())
        if is_waiting:
            self._ids[owner].remove(batch_id)
        return is_waiting

    def take(self, busy: Container[str] = ()) -> tuple[str, str] | None:
        """Remove the next batch, whose owner is not in `busy`; return owner and batch id."""
        owners = [owner for owner, ids in self._ids.items() if ids and owner not in busy]
        if not owners:
            return None
        owner = min(owners, key=lambda each: self._last_turn.get(each, 0))
        self._last_turn[owner] = next(self._turns)
        batch_id = min(self._ids[owner])
        self._ids[owner].remove(batch_id)
        return owner, batch_id


class Dispatcher:
    """The unfinished batches of a store."""

    def __init__(self, store: Store, executor: Executor, max_line_bytes: int) -> None:
        self._store = store
        self._executor = executor
        self._max_line_bytes = max_line_bytes
        self._known = set[str]()  # batches that wait, are at work, or have ended
        self._unchecked = WaitingBatches()
        self._ready = WaitingBatches()
        self._is_checking = False
        # the batch of each owner that gives its requests to the executor
        self._reading: dict[str, str] = {}
        self._num_waiting: dict[str, int] = {}  # requests of each batch without an answer
        self._changed = asyncio.Event()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Begin batches as tasks of `group`, until cancelled."""
        next_clean_s = time.monotonic()
        while True:
            self._changed.clear()
            try:
                await self._look(group)
                if time.monotonic() > next_clean_s:
                    next_clean_s = time.monotonic() + _CLEAN_S
                    await in_thread(self._store.remove_expired, time.time())
            except OSError as error:
                logger.error("the folder of batches cannot be read: %s", error)
            self._begin(group)
            BATCH_REQUESTS_WAITING.set(sum(self._num_waiting.values()))
            with suppress(TimeoutError):
                async with asyncio.timeout(_SCAN_S):
                    await self._changed.wait()

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Find new batches, and end those that were cancelled while they wait."""

        async def sort_in(folder: KeyFolder, state: BatchState) -> None:
            batch = state.batch
            if batch.in_progress_at is None:
                self._unchecked.add(folder.owner, batch.id)
            else:
                self._num_waiting[batch.id] = batch.request_counts.num_waiting
                self._ready.add(folder.owner, batch.id)

        owners = await in_thread(self._owner_of_each, KeyFolder.batch_ids)
        self._known.intersection_update(owners)
        for batch_id, owner in owners.items():
            if batch_id not in self._known:
                self._known.add(batch_id)
                await self._attempt(owner, batch_id, sort_in)
        cancelled = await in_thread(self._owner_of_each, KeyFolder.cancelled_ids)
        for batch_id, owner in cancelled.items():
            if self._unchecked.remove(owner, batch_id) or self._ready.remove(owner, batch_id):
                group.create_task(self._complete(owner, batch_id))

    def _owner_of_each(self, ids: Callable[[KeyFolder], list[str]]) -> dict[str, str]:
        """Return the owner of each batch among `ids`, the oldest of an owner first."""
        owner_of: dict[str, str] = {}
        for owner in self._store.owners():
            owner_of |= dict.fromkeys(ids(self._store.of(owner)), owner)
        return owner_of

    def _begin(self, group: asyncio.TaskGroup) -> None:
        """Begin the batches whose turn it is."""
        if not self._is_checking and (found := self._unchecked.take()) is not None:
            self._is_checking = True
            group.create_task(self._check(*found))
        while (found := self._ready.take(busy=self._reading)) is not None:
            owner, batch_id = found
            self._reading[owner] = batch_id
            group.create_task(self._complete(owner, batch_id))

    async def _attempt(self, owner: str, batch_id: str, work: Work) -> None:
        """Do `work` on a batch that has not ended; after a disk error it is found again."""
        folder = self._store.of(owner)
        try:
            state = await in_thread(folder.state, batch_id)
            if state.batch.status not in ENDED:
                await work(folder, state)
        except NotFound:  # removed since the scan
            return
        except OSError as error:
            logger.error("batch %s waits %g s: %s", batch_id, RETRY_S, error)
            asyncio.get_running_loop().call_later(RETRY_S, self._known.discard, batch_id)
        except Exception:  # the stored state is unreadable
            logger.exception("batch %s cannot be run", batch_id)

    async def _check(self, owner: str, batch_id: str) -> None:
        """Check the input file of a batch, which is then found again."""
        try:
            await self._attempt(owner, batch_id, self._validate)
        finally:
            self._is_checking = False
            self._changed.set()

    async def _complete(self, owner: str, batch_id: str) -> None:
        """Bring a batch to its end, or to the next attempt."""
        try:
            await self._attempt(owner, batch_id, self._run)
        finally:
            self._num_waiting.pop(batch_id, None)
            self._end_reading(owner, batch_id)

    def _end_reading(self, owner: str, batch_id: str) -> None:
        """Give the turn to the key's next batch."""
        if self._reading.get(owner) == batch_id:
            del self._reading[owner]
            self._changed.set()

    async def _validate(self, folder: KeyFolder, state: BatchState) -> None:
        batch = state.batch
        try:
            checked = await check_file(
                folder.content(batch.input_file_id), batch.endpoint, self._max_line_bytes
            )
        except FileNotFoundError:
            message = f"The file {batch.input_file_id} was deleted."
            checked = Checked(0, [BatchError(code="file_not_found", line=None, message=message)])
        if checked.errors:
            await in_thread(_fail, folder, state, checked.errors)
            return
        batch.status = "in_progress"
        batch.in_progress_at = int(time.time())
        batch.request_counts = RequestCounts(total=checked.num_lines)
        await in_thread(folder.save, state)
        self._known.discard(batch.id)

    async def _run(self, folder: KeyFolder, state: BatchState) -> None:
        """Run a batch; a defect fails it. Raise `OSError`."""
        try:
            if state.batch.in_progress_at is None:  # cancelled while it waited
                state.batch.status = "cancelled"
                state.batch.cancelled_at = int(time.time())
                await in_thread(folder.save, state)
            else:
                await self._answer(await in_thread(Job.open, folder, state, self._max_line_bytes))
            logger.info("batch %s %s", state.batch.id, state.batch.status)
        except OSError:
            raise
        except Exception:
            logger.exception("batch %s failed", state.batch.id)
            await in_thread(
                _fail, folder, state, [BatchError(code="internal", line=None, message=_DEFECT)]
            )

    async def _answer(self, job: Job) -> None:
        """Answer the requests that have no answer yet, until the batch ends."""
        batch = job.state.batch
        owner = job.folder.owner
        counts = batch.request_counts
        logger.info("batch %s: %d of %d requests wait", batch.id, counts.num_waiting, counts.total)
        run = BatchRun(
            owner,
            batch.id,
            job.source,
            job.journal.recovered,
            lambda: self._end_reading(owner, batch.id),
        )
        run.is_stopped = await in_thread(job.is_to_end)
        is_full = False
        self._executor.add(run)
        try:
            await self._save_until_over(job, run)
        except NoRoom:
            is_full = True
        except asyncio.CancelledError:  # the process stops
            self._executor.remove(run)
            with suppress(NoRoom):
                await in_thread(job.save, run.take_output())
            raise
        finally:
            self._executor.remove(run)
        if run.failure is not None:
            raise run.failure
        await in_thread(job.finish, is_full=is_full)

    async def _save_until_over(self, job: Job, run: BatchRun) -> None:
        """Write a run's answers until the run is over."""
        while True:
            is_over = run.is_over  # read before the last answers are taken
            await in_thread(job.save, run.take_output())
            batch = job.state.batch
            self._num_waiting[batch.id] = batch.request_counts.num_waiting
            if is_over:
                return
            if await in_thread(job.is_to_end):  # a failure may have stopped it meanwhile
                run.is_stopped = True
            await asyncio.sleep(_SAVE_S)


def _fail(folder: KeyFolder, state: BatchState, errors: list[BatchError]) -> None:
    state.batch.status = "failed"
    state.batch.failed_at = int(time.time())
    state.batch.errors = BatchErrors(data=errors)
    folder.save(state)
