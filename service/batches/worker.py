"""Runs the batches of a store in the one process that holds its lock."""

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from service.admission.traffic_gaps import TrafficGaps
from service.batches.dispatcher import RETRY_S, Dispatcher
from service.batches.execution import Executor
from service.batches.store import Store
from service.inference.core import Core
from service.settings import Settings

logger = logging.getLogger(__name__)

_LOCK_S = 1.0  # interval of attempts to get the lock


class BatchWorker:
    """The batches of a store, run while this process holds its lock."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self._store = store
        self._core = core
        self._gaps = gaps
        self._settings = settings
        self._is_stopping = False
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
        async def lead() -> None:
            async with _locked(self._store.path / "lock"):
                # a group whose task fails while it is cancelled raises that failure instead
                while not self._is_stopping:
                    logger.info("running the batches in %s", self._store.path)
                    try:
                        await self._run()
                    except ExceptionGroup:  # a defect must not end all batches until the next start
                        logger.exception("the batches stopped, and continue in %g s", RETRY_S)
                    await asyncio.sleep(RETRY_S)

        self._leading = asyncio.create_task(lead())

    async def stop(self) -> None:
        """Cancel requests in flight, write finished answers, and release the lock."""
        self._is_stopping = True
        if self._leading is not None:
            self._leading.cancel()
            with suppress(asyncio.CancelledError):
                await self._leading

    async def _run(self) -> None:
        executor = Executor(self._core, self._gaps, self._settings.request_timeout_s)
        dispatcher = Dispatcher(self._store, executor, self._settings.max_body_bytes)
        async with asyncio.TaskGroup() as group:
            group.create_task(executor.run())
            group.create_task(dispatcher.run(group))


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock of the store, which the kernel releases if the process dies.

    Wait until it is free.

    A POSIX lock: unlike one of flock(2), a child that was forked meanwhile does not hold it too.
    """
    with path.open("a") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_S)
        yield
