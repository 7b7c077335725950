"""Checks and runs the unfinished batches of a store in the one process that has its lock.

    validating ─> in_progress ─> finalizing ─> completed
        ├─> failed    ├─> finalizing ─> expired         the rest gets batch_expired
        └─> cancelled ├─> finalizing ─> failed          the files of its key have no room for more
                      └─> cancelling ─> cancelled       requests in flight end, the rest is not run

One input file is checked at a time, and of each API key one batch starts its requests, in the gaps
of online traffic: the next one begins when they are in flight or answered. A request that is
cancelled for an online one is put back; one that met a busy service or a runner that is not there
is repeated until the batch ends.

Everything that a later process needs is in the store: after a crash it continues with the requests
without an answer. In memory are the lines of the requests in flight, which count with what is
parsed of them as memory of requests, like the bodies of online ones; all others stay in their
files.
"""

import asyncio
import itertools
import logging
import sqlite3
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from pydantic import BaseModel

from service.admission.api_keys import NO_LIMITS, Quota
from service.admission.places import RequestContext, TrafficGaps
from service.batches import wire
from service.batches.input_file import InputFile, LinePlace, check_file, parse_line
from service.batches.store import NO_ROOM, NoRoom, OpenBatch, RenderedLine, Store
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from service.http.body import BodyMemory, check_texts, missing_image, parse_image, parsed
from service.http.boundary import STATUSES, error_json
from service.images.decoding import in_thread
from service.inference.core import Core
from service.inference.recording import record_failure
from service.openai.api import complete, error_body
from service.openai.wire import ChatRequest
from service.schema.rendering import analyzed, compared, predicted
from service.settings import Settings
from service.telemetry.metrics import BATCH_REQUESTS_WAITING
from service.validation import validated

logger = logging.getLogger(__name__)

_LOCK_S = 1.0  # interval of attempts to get the lock
_RETRY_S = 10.0  # pause after a disk error
_SCAN_S = 1.0  # interval of scans for new batches
_CLEAN_S = 3600.0
_DEFECT = wire.BatchError(
    code="internal",
    line=None,
    message="The service failed; the cause is in its log under the id of the batch.",
)

Work = Callable[[OpenBatch, wire.Batch], Awaitable[None]]

_API = "batch"  # label in metrics
# The name in the fair queue; no API key can have it. Keys' limits count online requests only.
_QUOTA = Quota("(batches)", NO_LIMITS)
_CHAT = "/v1/chat/completions"
_ANSWERINGS = {"/v1/predict": predicted, "/v1/compare": compared, "/v1/analyze": analyzed}
_OK = 200
_RETRY_AFTER_S = 1.0
_MAX_LATE = 3  # attempts that may miss their deadline: a runner may have been stuck
_SAVE_S = 0.5  # interval of writes of a batch's answers
_EXPIRED_AT_A_TIME = 1000


class BatchWorker:
    """The unfinished batches of a store, run while this process has its lock."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self.store = store
        self.core = core
        self.gaps = gaps
        self.timeout_s = settings.request_timeout_s
        self._max_line_bytes = settings.max_body_bytes
        self._turn = asyncio.Lock()  # its waiters are served in their order
        self._turns: dict[str, asyncio.Lock] = {}  # key: owner
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

    def input_file(self, batch: wire.Batch) -> InputFile:
        return InputFile(self.store.content(batch.input_file_id), self._max_line_bytes)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait until a request may start; API keys take turns."""
        async with self._turns.setdefault(owner, asyncio.Lock()), self._turn:
            await self.gaps.wait()
            yield

    async def _lead(self) -> None:
        lock = await self._locked()
        logger.info("running the batches in %s", self.store.path)
        next_clean_s = time.monotonic()
        try:
            while True:
                self._changed.clear()
                try:
                    self._begin(await in_thread(self.store.open_batches))
                    if time.monotonic() > next_clean_s:
                        next_clean_s = time.monotonic() + _CLEAN_S
                        await in_thread(self.store.remove_expired, time.time())
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
        while True:
            try:
                if (lock := await in_thread(self.store.lock)) is not None:
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
                current = await in_thread(self.store.batch, batch.owner, batch.id)
                if current.status not in wire.ENDED:  # since the scan
                    await work(batch, current)
            except OSError:
                raise
            except Exception:
                logger.exception("batch %s failed", batch.id)
                await in_thread(self.store.end, batch, [_DEFECT])
        except OSError as error:
            logger.error("batch %s waits %g s: %s", batch.id, _RETRY_S, error)
            await asyncio.sleep(_RETRY_S)
        finally:
            del self._tasks[batch.id]
            self._end_starting(batch)
            self._changed.set()

    def _end_starting(self, batch: OpenBatch) -> None:
        if self._starting.get(batch.owner) == batch.id:
            del self._starting[batch.owner]
            self._changed.set()

    async def _check(self, batch: OpenBatch, current: wire.Batch) -> None:
        try:
            if current.in_progress_at is not None:  # checked since the scan
                return
            try:
                checks = await check_file(self.input_file(current), current.endpoint)
                num_requests, errors = checks.num_requests, checks.errors
            except FileNotFoundError:
                message = f"The file {current.input_file_id} was deleted."
                num_requests = 0
                errors = [wire.BatchError(code="file_not_found", line=None, message=message)]
            if errors:
                await in_thread(self.store.end, batch, errors)
            else:
                await in_thread(self.store.begin, batch, num_requests)
        finally:
            self._is_checking = False

    async def _run(self, batch: OpenBatch, current: wire.Batch) -> None:
        logger.info("batch %s: %d requests wait", batch.id, batch.num_waiting)
        run = BatchRun(self, batch, current, lambda: self._end_starting(batch))
        ended = await run.run()
        logger.info("batch %s %s", batch.id, ended.status)


class BatchRun:
    """The unanswered requests of one batch, and the lines that are not written yet."""

    def __init__(
        self,
        worker: BatchWorker,
        batch: OpenBatch,
        current: wire.Batch,
        on_read: Callable[[], None],
    ) -> None:
        """`on_read` is called when all requests are in flight or answered."""
        self._worker = worker
        self._store = worker.store
        self._batch = batch
        self._on_read = on_read
        self._source = worker.input_file(current)
        self._places: Iterator[LinePlace] = iter(())
        self._is_read = False
        self._is_stopped = _is_to_end(current)
        self._failure: Exception | None = None  # a request or the input file failed
        self._put_back = deque[LinePlace]()
        self._in_flight: dict[asyncio.Task[None], LinePlace] = {}
        self._output: list[RenderedLine] = []

    async def run(self) -> wire.Batch:
        """Answer the requests until the batch ends, and make its files; raise `OSError`."""
        is_answered = await in_thread(self._store.is_answered, self._batch)
        self._places = self._source.unanswered(is_answered)
        errors: list[wire.BatchError] = []
        feeding = asyncio.create_task(self._feed())
        try:
            await self._save_until_over(feeding)
        except NoRoom:
            errors = [NO_ROOM]
        except asyncio.CancelledError:  # the process stops
            await self._cancel(feeding)
            with suppress(NoRoom):
                await self._save()
            raise
        finally:
            await self._cancel(feeding)
        if self._failure is not None:
            raise self._failure
        batch = await in_thread(self._store.begin_end, self._batch, is_full=bool(errors))
        if batch.expired_at is not None and not errors:
            try:
                await in_thread(self._append_expired)
            except NoRoom:
                errors = [NO_ROOM]
        return await in_thread(self._store.end, self._batch, errors)

    async def _save_until_over(self, feeding: asyncio.Task[None]) -> None:
        while True:
            is_fed = self._is_stopped or feeding.done()
            is_over = is_fed and not self._in_flight  # read before the last lines are taken
            batch = await self._save()
            if is_over:
                return
            if _is_to_end(batch):
                self._is_stopped = True
            await asyncio.sleep(_SAVE_S)

    async def _save(self) -> wire.Batch:
        lines, self._output = self._output, []
        return await in_thread(self._store.append, self._batch, lines)

    async def _cancel(self, feeding: asyncio.Task[None]) -> None:
        """Start no further request, and cancel those in flight."""
        tasks = [feeding, *self._in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self) -> None:
        """Start every request in a turn of its API key."""
        try:
            while (place := await self._next_place()) is not None:
                async with self._worker.turn(self._batch.owner):
                    if self._is_stopped:
                        return
                    task = self._worker.gaps.start(self._answer(place))
                    self._in_flight[task] = place
                    task.add_done_callback(self._end_request)
        except Exception as error:  # reported by `run`; other batches continue
            self._fail(error)

    async def _next_place(self) -> LinePlace | None:
        while not self._is_stopped:
            if self._put_back:
                return self._put_back.popleft()
            if not self._is_read:
                place = await in_thread(next, self._places, None)
                if place is not None:
                    return place
                self._is_read = True
                self._on_read()
            elif self._in_flight:
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
            else:
                return None
        return None

    def _end_request(self, task: asyncio.Task[None]) -> None:
        place = self._in_flight.pop(task)
        if task.cancelled():
            self._put_back.append(place)
        elif isinstance(error := task.exception(), Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._is_stopped = True

    def _append_expired(self) -> None:
        """Append an error for each request that was not run; raise `NoRoom`."""
        places = self._source.unanswered(self._store.is_answered(self._batch))
        while piece := list(itertools.islice(places, _EXPIRED_AT_A_TIME)):
            lines: list[RenderedLine] = []
            for place in piece:
                custom_id = parse_line(self._source.read(place)).custom_id
                line_id = f"batch_req_{uuid.uuid4().hex}"
                line = wire.OutputLine(
                    id=line_id, custom_id=custom_id, response=None, error=wire.OutputError()
                )
                lines.append(_rendered(place, line))
            self._store.append(self._batch, lines)

    async def _answer(self, place: LinePlace) -> None:
        """Add the line of the answer or error, unless the batch stops before there is one."""
        request_id = uuid.uuid4().hex
        num_late = 0
        while True:
            try:
                is_last = num_late + 1 == _MAX_LATE
                line = await self._attempt(place, request_id, is_last=is_last)
                self._output.append(line)  # another list than before the answer
                return
            except DeadlineExceeded:
                num_late += 1
            except (Overloaded, NotReady):
                pass
            if self._is_stopped:
                return
            await asyncio.sleep(_RETRY_AFTER_S)

    async def _attempt(self, place: LinePlace, request_id: str, *, is_last: bool) -> RenderedLine:
        """Return the line of an answer or error; raise an error after which it is repeated."""
        core = self._worker.core
        deadline_s = time.monotonic() + self._worker.timeout_s
        context = RequestContext(request_id, _API, deadline_s, _QUOTA, needs_place=False)
        line = None
        try:
            line = await self._read(place, context)
            check_texts(line.body)
            answer = await _answer_body(line, core, context)
            status, body = _OK, answer.model_dump(mode="json")
        except (Overloaded, NotReady):
            raise
        except Exception as error:  # a defect at one request must not end its batch
            if line is None or (isinstance(error, DeadlineExceeded) and not is_last):
                raise
            failure = record_failure(error, _API, request_id)
            form = error_body if line.url == _CHAT else error_json
            status, body = STATUSES[failure.code], form(failure, request_id)
        finally:
            await core.places.leave(context)
        response = wire.OutputResponse(status_code=status, request_id=request_id, body=body)
        line_id = f"batch_req_{request_id}"
        return _rendered(
            place, wire.OutputLine(id=line_id, custom_id=line.custom_id, response=response)
        )

    async def _read(self, place: LinePlace, context: RequestContext) -> wire.BatchLine:
        """Return the line, held until the attempt ends; raise `Overloaded` without memory."""
        hold = partial(self._worker.core.places.hold, context)
        hold(place.num_bytes)
        data = await in_thread(self._source.read, place)
        return await parsed(parse_line, data, BodyMemory(len(data), hold))


def _is_to_end(batch: wire.Batch) -> bool:
    return batch.cancelling_at is not None or time.time() >= batch.expires_at


def _rendered(place: LinePlace, line: wire.OutputLine) -> RenderedLine:
    is_answer = line.response is not None and line.response.status_code == _OK
    return RenderedLine(place.number, is_answer, line.model_dump_json().encode() + b"\n")


async def _answer_body(line: wire.BatchLine, core: Core, context: RequestContext) -> BaseModel:
    if line.url == _CHAT:
        chat = validated(ChatRequest, line.body)
        _check_whole(chat.stream)
        return await complete(chat, core, context)
    if "image" not in line.body:
        raise missing_image()
    fields = {name: value for name, value in line.body.items() if name != "image"}
    image = await in_thread(parse_image, line.body["image"])
    if line.url != "/v1/compare":
        _check_whole(fields.get("stream") is True)
    return await _ANSWERINGS[line.url](core, fields, image, context)


def _check_whole(is_streamed: bool) -> None:
    if is_streamed:
        message = "stream is true; a request of a batch is answered as a whole"
        raise InvalidRequest(message, "stream")
