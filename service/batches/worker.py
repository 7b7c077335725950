"""Checks and runs the unfinished batches of a store in the one process that has its lock.

    validating ─> in_progress ─> finalizing ─> completed
        ├─> failed    ├─> finalizing ─> expired         the rest gets batch_expired
        └─> cancelled ├─> finalizing ─> failed          the files of its key have no room for more
                      └─> cancelling ─> cancelled       requests in flight end, the rest is not run

One input file is checked at a time, and of each API key one batch starts its requests: the next
one begins when they are in flight or answered. Everything that a later process needs is in the
store: after a crash it continues with the requests without an answer.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from service.admission.places import TrafficGaps
from service.batches.execution import BatchRun, Executor
from service.batches.input_file import Checked, check_file
from service.batches.store import OpenBatch, Store
from service.batches.wire import ENDED, Batch, BatchError
from service.images.decoding import in_thread
from service.inference.core import Core
from service.settings import Settings
from service.telemetry.metrics import BATCH_REQUESTS_WAITING

logger = logging.getLogger(__name__)

_LOCK_S = 1.0  # interval of attempts to get the lock
_RETRY_S = 10.0  # pause after a disk error
_SCAN_S = 1.0  # interval of scans for new batches
_CLEAN_S = 3600.0
_DEFECT = BatchError(
    code="internal",
    line=None,
    message="The service failed; the cause is in its log under the id of the batch.",
)

Work = Callable[[OpenBatch, Batch], Awaitable[None]]


class BatchWorker:
    """The unfinished batches of a store, run while this process has its lock."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self._store = store
        self._executor = Executor(store, core, gaps, settings)
        self._tasks: dict[str, asyncio.Task[None]] = {}  # key: batch id
        self._starting: dict[str, str] = {}  # the batch of each API key that starts its requests
        self._is_checking = False
        self._num_checks = 0
        self._last_check: dict[str, int] = {}  # key: owner
        self._changed = asyncio.Event()
        self._leading: asyncio.Task[None] | None = None

    @classmethod
    def started(
        cls, core: Core, gaps: TrafficGaps | None, settings: Settings
    ) -> "BatchWorker | None":
        """Return the worker of the folder of batches, if one is set."""
        if settings.batches_folder is None or gaps is None:
            return None
        store = Store(settings.batches_folder)
        store.prepare()
        worker = cls(store, core, gaps, settings)
        worker.start()
        return worker

    def start(self) -> None:
        self._leading = asyncio.create_task(self._lead())

    async def stop(self) -> None:
        """Cancel requests in flight, write finished answers, and release the lock."""
        if self._leading is not None:
            self._leading.cancel()
            with suppress(asyncio.CancelledError):
                await self._leading

    async def _lead(self) -> None:
        """Run the batches from the time when no other process does."""
        lock = await self._locked()
        logger.info("running the batches in %s", self._store.path)
        next_clean_s = time.monotonic()
        try:
            while True:
                self._changed.clear()
                try:
                    self._begin(await in_thread(self._store.open_batches))
                    if time.monotonic() > next_clean_s:
                        next_clean_s = time.monotonic() + _CLEAN_S
                        await in_thread(self._store.remove_expired, time.time())
                except OSError as error:
                    logger.error("the folder of batches fails: %s", error)
                except Exception:  # a defect must not end all batches until the next start
                    logger.exception("a scan of the batches failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SCAN_S):
                        await self._changed.wait()
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            lock.close()

    async def _locked(self) -> sqlite3.Connection:
        """Wait for the lock of the store."""
        while True:
            try:
                if (lock := await in_thread(self._store.lock)) is not None:
                    return lock
            except OSError as error:
                logger.error("the folder of batches cannot be locked: %s", error)
            await asyncio.sleep(_LOCK_S)

    def _begin(self, batches: Sequence[OpenBatch]) -> None:
        """Begin the batches whose turn it is; `batches` has the oldest first."""
        BATCH_REQUESTS_WAITING.set(sum(batch.num_waiting for batch in batches))
        unchecked: list[OpenBatch] = []
        for batch in batches:
            if batch.id in self._tasks:
                continue
            if batch.status == "validating":
                unchecked.append(batch)
            elif batch.status == "cancelling":
                self._start(batch, self._run)
            elif batch.owner not in self._starting:
                self._starting[batch.owner] = batch.id
                self._start(batch, self._run)
        if unchecked and not self._is_checking:
            # API keys take turns
            batch = min(unchecked, key=lambda batch: self._last_check.get(batch.owner, 0))
            self._num_checks += 1
            self._last_check[batch.owner] = self._num_checks
            self._is_checking = True
            self._start(batch, self._check)

    def _start(self, batch: OpenBatch, work: Work) -> None:
        self._tasks[batch.id] = asyncio.create_task(self._attempt(batch, work))

    async def _attempt(self, batch: OpenBatch, work: Work) -> None:
        """Do `work` on a batch; it begins again after an error of the disk."""
        try:
            try:
                current = await in_thread(self._store.batch, batch.owner, batch.id)
                if current.status not in ENDED:  # since the scan
                    await work(batch, current)
            except OSError:
                raise
            except Exception:
                logger.exception("batch %s failed", batch.id)
                await in_thread(self._store.end, batch, [_DEFECT])
        except OSError as error:
            logger.error("batch %s waits %g s: %s", batch.id, _RETRY_S, error)
            await asyncio.sleep(_RETRY_S)
        finally:
            del self._tasks[batch.id]
            self._end_starting(batch)
            self._changed.set()

    def _end_starting(self, batch: OpenBatch) -> None:
        """Give the turn to the key's next batch."""
        if self._starting.get(batch.owner) == batch.id:
            del self._starting[batch.owner]
            self._changed.set()

    async def _check(self, batch: OpenBatch, current: Batch) -> None:
        """Check the input file of a batch."""
        try:
            if current.in_progress_at is not None:  # checked since the scan
                return
            try:
                checked = await check_file(self._executor.input_file(current), current.endpoint)
            except FileNotFoundError:
                message = f"The file {current.input_file_id} was deleted."
                error = BatchError(code="file_not_found", line=None, message=message)
                checked = Checked(0, [error])
            if checked.errors:
                await in_thread(self._store.end, batch, checked.errors)
            else:
                await in_thread(self._store.begin, batch, checked.num_requests)
        finally:
            self._is_checking = False

    async def _run(self, batch: OpenBatch, current: Batch) -> None:
        """Bring a batch to its end."""
        logger.info("batch %s: %d requests wait", batch.id, batch.num_waiting)
        run = BatchRun(self._executor, batch, current, lambda: self._end_starting(batch))
        ended = await run.run()
        logger.info("batch %s %s", batch.id, ended.status)
