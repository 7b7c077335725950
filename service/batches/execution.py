"""Answers the requests of one batch in the gaps of online traffic, and writes their lines.

A request that is cancelled for an online one is put back; one that met a busy service or a runner
that is not there is repeated until the batch ends. In memory are the lines of the requests in
flight, which count with what is parsed of them as memory of requests, like the bodies of online
ones; all others stay in their files.
"""

import asyncio
import itertools
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from pydantic import BaseModel

from service.admission.api_keys import NO_LIMITS, Quota
from service.admission.places import RequestContext, TrafficGaps
from service.analysis.execution import analyze
from service.batches.input_file import InputFile, LinePlace, parse_line
from service.batches.store import NO_ROOM, NoRoom, OpenBatch, RenderedLine, Store
from service.batches.wire import (
    Batch,
    BatchError,
    BatchLine,
    OutputError,
    OutputLine,
    OutputResponse,
)
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from service.http.body import BodyMemory, check_texts, missing_image, parse_image, parsed
from service.http.boundary import STATUSES, error_json
from service.images.decoding import in_thread
from service.inference.core import Core
from service.inference.recording import record_failure
from service.openai.api import complete, error_body
from service.openai.wire import ChatRequest
from service.schema.rendering import analysis_json, answer_json, comparison_json
from service.settings import Settings
from service.validation import validated

_API = "batch"  # label in metrics
# The name in the fair queue; no API key can have it. Keys' limits count online requests only.
_QUOTA = Quota("(batches)", NO_LIMITS)
_CHAT = "/v1/chat/completions"
_OK = 200
_RETRY_AFTER_S = 1.0
_MAX_LATE = 3  # attempts that may miss their deadline: a runner may have been stuck
_SAVE_S = 0.5  # interval of writes of a batch's answers
_EXPIRED_AT_A_TIME = 1000


class Executor:
    """The service that answers the requests of all batches, and the turns in which they start."""

    def __init__(self, store: Store, core: Core, gaps: TrafficGaps, settings: Settings) -> None:
        self.store = store
        self.core = core
        self.gaps = gaps
        self.timeout_s = settings.request_timeout_s
        self.max_line_bytes = settings.max_body_bytes
        self._turn = asyncio.Lock()  # its waiters are served in their order
        self._turns: dict[str, asyncio.Lock] = {}  # key: owner

    def input_file(self, batch: Batch) -> InputFile:
        return InputFile(self.store.content(batch.input_file_id), self.max_line_bytes)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait until a request may start; API keys take turns."""
        async with self._turns.setdefault(owner, asyncio.Lock()), self._turn:
            await self.gaps.wait()
            yield


class BatchRun:
    """The unanswered requests of one batch, and the lines that are not written yet."""

    def __init__(
        self, executor: Executor, batch: OpenBatch, current: Batch, on_read: Callable[[], None]
    ) -> None:
        """`on_read` is called when all requests are in flight or answered."""
        self._executor = executor
        self._store = executor.store
        self._batch = batch
        self._on_read = on_read
        self._source = executor.input_file(current)
        self._places: Iterator[LinePlace] = iter(())
        self._is_read = False
        self._is_stopped = _is_to_end(current)
        self._failure: Exception | None = None  # a request or the input file failed
        self._put_back = deque[LinePlace]()
        self._in_flight: dict[asyncio.Task[None], LinePlace] = {}
        self._output: list[RenderedLine] = []

    async def run(self) -> Batch:
        """Answer the requests until the batch ends, and make its files; raise `OSError`."""
        is_answered = await in_thread(self._store.is_answered, self._batch)
        self._places = self._source.unanswered(is_answered)
        errors: list[BatchError] = []
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

    async def _save(self) -> Batch:
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
                async with self._executor.turn(self._batch.owner):
                    if self._is_stopped:
                        return
                    task = self._executor.gaps.start(self._answer(place))
                    self._in_flight[task] = place
                    task.add_done_callback(self._end_request)
        except Exception as error:  # reported by `run`; other batches continue
            self._fail(error)

    async def _next_place(self) -> LinePlace | None:
        """Return the next request, or None if no other will come."""
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
                line = OutputLine(
                    id=line_id, custom_id=custom_id, response=None, error=OutputError()
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
        core = self._executor.core
        deadline_s = time.monotonic() + self._executor.timeout_s
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
        response = OutputResponse(status_code=status, request_id=request_id, body=body)
        line_id = f"batch_req_{request_id}"
        return _rendered(place, OutputLine(id=line_id, custom_id=line.custom_id, response=response))

    async def _read(self, place: LinePlace, context: RequestContext) -> BatchLine:
        """Return the line, held until the attempt ends; raise `Overloaded` without memory."""
        hold = partial(self._executor.core.places.hold, context)
        hold(place.num_bytes)
        data = await in_thread(self._source.read, place)
        return await parsed(parse_line, data, BodyMemory(len(data), hold))


def _is_to_end(batch: Batch) -> bool:
    return batch.cancelling_at is not None or time.time() >= batch.expires_at


def _rendered(place: LinePlace, line: OutputLine) -> RenderedLine:
    is_answer = line.response is not None and line.response.status_code == _OK
    return RenderedLine(place.number, is_answer, line.model_dump_json().encode() + b"\n")


async def _answer_body(line: BatchLine, core: Core, context: RequestContext) -> BaseModel:
    """Return the body of the answer, as that of the endpoint that the line names."""
    if line.url == _CHAT:
        chat = validated(ChatRequest, line.body)
        _check_whole(chat.stream)
        return await complete(chat, core, context)
    if "image" not in line.body:
        raise missing_image()
    fields = {name: value for name, value in line.body.items() if name != "image"}
    image = await in_thread(parse_image, line.body["image"])
    if line.url == "/v1/compare":
        return comparison_json(await core.compare(image, fields, context), context.request_id)
    _check_whole(fields.get("stream") is True)
    if line.url == "/v1/analyze":
        return analysis_json(await analyze(core, image, fields, context), context.request_id)
    return answer_json(await core.predict(image, fields, context), context.request_id)


def _check_whole(is_streamed: bool) -> None:
    if is_streamed:
        message = "stream is true; a request of a batch is answered as a whole"
        raise InvalidRequest(message, "stream")
