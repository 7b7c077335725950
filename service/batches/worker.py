"""Checks and runs the unfinished batches of a store in the one process that has its lock.

    validating ─> in_progress ─> completed
        ├─> failed    ├─> expired        the rest gets batch_expired
        └─> cancelled ├─> failed         the files of its key have no room for more
                      └─> cancelling ─> cancelled      requests in flight end, the rest is not run

One input file is checked at a time, and one batch of each API key runs, in the gaps of online
traffic. Its bodies are checked when they are answered: an invalid one is the error of its request.
A request that is cancelled for an online one is put back; one that met a busy service or a runner
that is not there is repeated until the batch ends, a late one twice.

Everything that a later process needs is in the store: after a crash it continues with the requests
without an answer. Only the lines of requests in flight are in memory, where they count like the
bodies of online requests. Source of the codes: OpenAI's API reference, "The batch object".
"""

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from service.admission.api_keys import NO_LIMITS, Quota
from service.admission.fair_queue import ClientSlots
from service.admission.places import RequestContext, TrafficGaps
from service.admission.threads import PARSING, STORING
from service.batches import wire
from service.batches.store import NO_ROOM, BatchState, LinePlace, NoRoom, OutputLine, Store
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from service.http.body import BodyMemory, json_object, missing_image, parse_image, parsed
from service.http.boundary import STATUSES, error_json
from service.inference.core import Core
from service.inference.recording import record_failure
from service.openai.api import ChatRequest, complete, error_body
from service.schema.rendering import analyzed, compared, predicted
from service.settings import Settings
from service.telemetry.metrics import BATCH_REQUESTS_WAITING
from service.validation import validated
from tasks.errors import shown

logger = logging.getLogger(__name__)

MAX_REQUESTS = 50_000
MAX_BLANK_LINES = 50_000
_MAX_ERRORS = 100
# checked at a time, after which online requests get the interpreter's lock
_PIECE_BYTES = 1_000_000
_LINE_BYTES = 100  # a line costs as much time as this many bytes
_PAUSE_S = 0.01
_RETRY_S = 10.0  # pause after a disk error
_SCAN_S = 1.0  # interval of scans for new batches
_CLEAN_S = 3600.0
_SAVE_S = 0.5  # interval of writes of a batch's answers
_RETRY_AFTER_S = 1.0
_MAX_LATE = 3  # attempts that may miss their deadline: a runner may have been stuck
_DEFECT = wire.BatchError(
    code="internal",
    line=None,
    message="The service failed; the cause is in its log under the id of the batch.",
)
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_API = "batch"  # label in metrics
# Without a name, which every API key has: runners do not keep room for clients of the gaps. Keys'
# limits count online requests only.
_QUOTA = Quota("", NO_LIMITS)
_CHAT = "/v1/chat/completions"
_ANSWERINGS = {"/v1/predict": predicted, "/v1/compare": compared, "/v1/analyze": analyzed}
_OK = 200


def parse_line(data: bytes) -> wire.BatchLine:
    return validated(wire.BatchLine, json_object(data))


@dataclass(slots=True)
class InputCheck:
    """The check of an input file: the places of its requests, and the errors of its lines."""

    endpoint: wire.Endpoint
    max_line_bytes: int
    places: list[LinePlace] = field(default_factory=list)
    errors: list[wire.BatchError] = field(default_factory=list)
    id_hashes: set[int] = field(default_factory=set)

    def run(self, path: Path) -> None:
        """Check the lines, with a pause after each piece; raise `FileNotFoundError`."""
        number = start = num_blank_lines = piece_bytes = 0
        with path.open("rb") as file:
            while line := file.readline(self.max_line_bytes + 2):  # longer ones are cut
                number += 1
                data = line.strip()
                if data:
                    indent = len(line) - len(line.lstrip())
                    self.places.append(LinePlace(number, start + indent, len(data)))
                    self._check_line(number, data)
                else:
                    num_blank_lines += 1
                if len(self.errors) >= _MAX_ERRORS:
                    return
                if len(self.places) > MAX_REQUESTS or num_blank_lines > MAX_BLANK_LINES:
                    limits = f"{MAX_REQUESTS} requests or {MAX_BLANK_LINES} blank lines"
                    self.report(None, "too_many_tasks", f"The file has more than {limits}.")
                    return
                start += len(line)
                piece_bytes += len(line) + _LINE_BYTES
                if piece_bytes > _PIECE_BYTES:
                    piece_bytes = 0
                    time.sleep(_PAUSE_S)
        if not self.places:
            self.report(None, "empty_file", "The file has no requests.")

    def _check_line(self, number: int, data: bytes) -> None:
        if len(data) > self.max_line_bytes:
            problem = f"The line has more bytes than a request may have, {self.max_line_bytes}."
            self.report(number, "invalid_request", problem)
            return
        try:
            line = parse_line(data)
        except InvalidRequest as error:
            code = "invalid_request" if error.param else "invalid_json_line"
            self.report(number, code, f"Not a request: {error.message}.", error.param)
            return
        if line.url != self.endpoint:
            problem = f"The url is {shown(line.url)}, the batch's endpoint {self.endpoint}."
            self.report(number, "url_mismatch", problem, "url")
        # 64 bits: two of 50,000 ids have the same with a probability below 1e-10
        id_hash = hash(line.custom_id)
        if id_hash in self.id_hashes:
            problem = "The custom_id is also that of an earlier line."
            self.report(number, "duplicate_custom_id", problem, "custom_id")
        self.id_hashes.add(id_hash)

    def report(self, number: int | None, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(wire.BatchError(code=code, line=number, message=message, param=param))


class BatchWorker:
    """The unfinished batches of a store, run while this process has its lock."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self.store = store
        self.core = core
        self.gaps = gaps
        self.timeout_s = settings.request_timeout_s
        self._max_line_bytes = settings.max_body_bytes
        self.turns = ClientSlots(1, 1)  # API keys take turns to start a request
        self._checking = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # key: batch id
        # of each owner one batch is checked and one runs; key: batch id
        self._lanes: dict[str, tuple[str, bool]] = {}
        self._changed = asyncio.Event()
        self._next_clean_s = -math.inf
        self._leading: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Prepare the folder, and wait for its lock; raise `SettingsError`."""
        self.store.prepare()
        self._leading = asyncio.create_task(self._lead())

    async def stop(self) -> None:
        """Cancel requests in flight, write finished answers, and release the lock."""
        if self._leading is not None:
            self._leading.cancel()
            with suppress(asyncio.CancelledError):
                await self._leading

    async def _lead(self) -> None:
        lock = None
        try:
            while True:
                self._changed.clear()
                try:
                    if lock is None and (lock := await STORING.run(self.store.lock)) is not None:
                        logger.info("running the batches in %s", self.store.path)
                    if lock is not None:
                        await self._scan()
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
            if lock is not None:
                lock.close()

    async def _scan(self) -> None:
        self._begin(await STORING.run(self.store.open_batches))
        if time.monotonic() > self._next_clean_s:
            self._next_clean_s = time.monotonic() + _CLEAN_S
            await STORING.run(self.store.remove_expired, time.time())

    def _begin(self, states: Sequence[BatchState]) -> None:
        """Begin the batches whose turn it is; `states` has the oldest first."""
        BATCH_REQUESTS_WAITING.set(sum(state.batch.request_counts.num_waiting for state in states))
        for state in states:
            lane = (state.owner, state.batch.status == "validating")
            is_free = lane not in self._lanes.values() or state.batch.status == "cancelling"
            if is_free and state.id not in self._tasks:
                self._lanes[state.id] = lane
                self._tasks[state.id] = asyncio.create_task(self._attempt(state))

    async def _attempt(self, state: BatchState) -> None:
        """Check or run a batch; it begins again after an error of the disk."""
        try:
            was_checked = state.batch.status != "validating"
            # the scan may be older than the batch's check, or its end
            state.batch = await STORING.run(self.store.batch, state.owner, state.id)
            if state.batch.status == "validating":
                await self._check(state)
            elif was_checked and state.batch.status not in wire.ENDED:
                waiting = state.batch.request_counts.num_waiting
                logger.info("batch %s: %d requests wait", state.id, waiting)
                ended = await BatchRun(self, state).run()
                logger.info("batch %s %s", state.id, ended.status)
        except OSError as error:
            logger.error("batch %s waits %g s: %s", state.id, _RETRY_S, error)
            await asyncio.sleep(_RETRY_S)
        except Exception:
            logger.exception("batch %s failed", state.id)
            with suppress(OSError):  # else it begins again
                await STORING.run(self.store.end, state, [_DEFECT])
        finally:
            del self._tasks[state.id]
            self.release_lane(state)

    def release_lane(self, state: BatchState) -> None:
        if self._lanes.pop(state.id, None) is not None:
            self._changed.set()

    async def _check(self, state: BatchState) -> None:
        check = InputCheck(state.batch.endpoint, self._max_line_bytes)
        async with self._checking:
            try:
                await STORING.run(check.run, self.store.content(state.batch.input_file_id))
            except FileNotFoundError:
                message = f"The file {state.batch.input_file_id} was deleted."
                check.report(None, "file_not_found", message)
        if check.errors:
            await STORING.run(self.store.end, state, check.errors)
        else:
            await STORING.run(self.store.begin, state, check.places)


class BatchRun:
    """The unanswered requests of one batch, and the lines that are not written yet."""

    def __init__(self, worker: BatchWorker, state: BatchState) -> None:
        self._worker = worker
        self._store = worker.store
        self._state = state
        self._input = worker.store.content(state.batch.input_file_id)
        self._is_stopped = _is_to_end(state.batch)
        self._failure: Exception | None = None  # a request or the input file failed
        self._pending = deque[LinePlace]()
        self._in_flight: dict[asyncio.Task[None], LinePlace] = {}
        self._output: list[OutputLine] = []

    async def run(self) -> wire.Batch:
        """Answer the requests until the batch ends, and make its files; raise `OSError`."""
        self._pending.extend(await STORING.run(self._store.unanswered, self._state))
        errors: list[wire.BatchError] = []
        feeding = asyncio.create_task(self._feed())
        try:
            await self._save_until_over(feeding)
        except NoRoom:
            errors = [NO_ROOM]
        finally:  # no further request is started, and those in flight are cancelled
            tasks = [feeding, *self._in_flight]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(NoRoom):
                await self._save()
        if self._failure is not None:
            raise self._failure
        if not (self._is_stopped or errors):
            await feeding  # has ended; raises its defect
        is_late = time.time() >= self._state.batch.expires_at
        if is_late and self._state.batch.cancelling_at is None and not errors:
            try:
                await STORING.run(self._append_expired)
            except NoRoom:
                errors = [NO_ROOM]
        return await STORING.run(self._store.end, self._state, errors)

    async def _save_until_over(self, feeding: asyncio.Task[None]) -> None:
        while True:
            is_fed = self._is_stopped or feeding.done()
            is_over = is_fed and not self._in_flight  # read before the last lines are taken
            self._state.batch = await self._save()
            if is_over:
                return
            if _is_to_end(self._state.batch):
                self._is_stopped = True
            await asyncio.sleep(_SAVE_S)

    async def _save(self) -> wire.Batch:
        lines, self._output = self._output, []
        return await STORING.run(self._store.append, self._state, lines)

    async def _feed(self) -> None:
        """Start every request in a turn of its API key."""
        while not self._is_stopped and (self._pending or self._in_flight):
            if not self._pending:  # the batch may wait long for the last answers
                self._worker.release_lane(self._state)
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                continue
            async with self._worker.turns.slot(self._state.owner):
                await self._worker.gaps.wait()
                if self._is_stopped:
                    return
                place = self._pending.popleft()
                task = self._worker.gaps.start(self._answer(place))
                self._in_flight[task] = place
                task.add_done_callback(self._end_request)

    def _end_request(self, task: asyncio.Task[None]) -> None:
        place = self._in_flight.pop(task)
        if task.cancelled():
            self._pending.append(place)
        elif isinstance(error := task.exception(), Exception):
            self._failure = error
            self._is_stopped = True

    def _append_expired(self) -> None:
        lines: list[OutputLine] = []
        for place in self._store.unanswered(self._state):
            custom_id = parse_line(self._line(place)).custom_id
            lines.append(_rendered(place, custom_id, False, error=_EXPIRED))
        self._store.append(self._state, lines)

    def _line(self, place: LinePlace) -> bytes:
        with self._input.open("rb") as file:
            file.seek(place.start)
            return file.read(place.num_bytes)

    async def _answer(self, place: LinePlace) -> None:
        """Add the line of the answer or error, unless the batch stops before there is one."""
        request_id = uuid.uuid4().hex
        num_late = 0
        while True:
            try:
                line = await self._attempt(place, request_id, is_last=num_late + 1 == _MAX_LATE)
                self._output.append(line)  # another list than before the answer
                return
            except (DeadlineExceeded, Overloaded, NotReady) as error:
                if self._is_stopped:
                    return
                num_late += isinstance(error, DeadlineExceeded)
            await asyncio.sleep(_RETRY_AFTER_S)

    async def _attempt(self, place: LinePlace, request_id: str, is_last: bool) -> OutputLine:
        """Return the line of an answer or error; raise an error after which it is repeated."""
        core = self._worker.core
        deadline_s = time.monotonic() + self._worker.timeout_s
        context = RequestContext(request_id, _API, deadline_s, _QUOTA, needs_place=False)
        try:
            line = await self._read(place, context)
            status, body = await self._answered(line, context, is_last)
        finally:
            await core.places.leave(context)
        response = {"status_code": status, "request_id": request_id, "body": body}
        return _rendered(place, line.custom_id, status == _OK, response=response)

    async def _answered(
        self, line: wire.BatchLine, context: RequestContext, is_last: bool
    ) -> tuple[int, dict[str, Any]]:
        try:
            answer = await _answer_body(line, self._worker.core, context)
            return _OK, answer.model_dump(mode="json")
        except (Overloaded, NotReady):
            raise
        except Exception as error:  # a defect at one request must not end its batch
            if isinstance(error, DeadlineExceeded) and not is_last:
                raise
            failure = record_failure(error, _API, context.request_id)
            form = error_body if line.url == _CHAT else error_json
            return STATUSES[failure.code], form(failure, context.request_id)

    async def _read(self, place: LinePlace, context: RequestContext) -> wire.BatchLine:
        """Return the line, held until the attempt ends; raise `Overloaded` without memory."""
        hold = partial(self._worker.core.places.hold, context)
        hold(place.num_bytes)
        data = await STORING.run(self._line, place)
        return await parsed(parse_line, data, BodyMemory(len(data), hold))


def _is_to_end(batch: wire.Batch) -> bool:
    return batch.cancelling_at is not None or time.time() >= batch.expires_at


def _rendered(
    place: LinePlace, custom_id: str, is_answer: bool, **outcome: Mapping[str, object]
) -> OutputLine:
    line_id = f"batch_req_{uuid.uuid4().hex}"
    document = {"id": line_id, "custom_id": custom_id, "response": None, "error": None, **outcome}
    return OutputLine(place.number, is_answer, to_json(document) + b"\n")


async def _answer_body(line: wire.BatchLine, core: Core, context: RequestContext) -> BaseModel:
    if line.body.get("stream") is True:
        message = "stream is true; a request of a batch is answered as a whole"
        raise InvalidRequest(message, "stream")
    if line.url == _CHAT:
        return await complete(validated(ChatRequest, line.body), core, context)
    if "image" not in line.body:
        raise missing_image()
    fields = {name: value for name, value in line.body.items() if name != "image"}
    image = await PARSING.run(parse_image, line.body["image"])
    return await _ANSWERINGS[line.url](core, fields, image, context)
