"""Runs the requests of all batches in the gaps of online traffic.

API keys take turns, and of one key the oldest batch comes first. A request that is cancelled for an
online one is put back. In memory are the lines of the requests in flight, which count as their
bytes; all others stay in their files.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from service.admission.traffic_gaps import TrafficGaps
from service.batches.answers import FiledRequest
from service.batches.lines import IdHashes, InputFile, LineSpan, RenderedLine
from service.images.decoding import in_thread
from service.inference.core import Core


class BatchRun:
    """The unanswered requests of one batch, and the answered lines since `take_output`."""

    def __init__(
        self,
        owner: str,
        batch_id: str,
        source: InputFile,
        done: IdHashes,
        on_read: Callable[[], None],
    ) -> None:
        """`on_read` is called when every line was taken."""
        self.owner = owner
        self.batch_id = batch_id
        self.is_stopped = False
        self.failure: BaseException | None = None  # from a request or the input file
        self.source = source
        self._lines = source.unanswered(done)
        self._on_read = on_read
        self._is_read = False
        self._put_back = deque[LineSpan]()
        self._num_taken = 0
        self._in_flight = set[asyncio.Task[None]]()
        self._output: list[RenderedLine] = []

    @property
    def has_lines(self) -> bool:
        return not self.is_stopped and bool(self._put_back or not self._is_read)

    @property
    def is_over(self) -> bool:
        """True if no request is in flight, and no other will be."""
        return not self._in_flight and (self.is_stopped or not (self.has_lines or self._num_taken))

    async def take_line(self) -> LineSpan | None:
        """Return the next request, for `begin` or `drop`, or None at the end of the file."""
        self._num_taken += 1
        if self._put_back:
            return self._put_back.popleft()
        try:
            if (line := await in_thread(next, self._lines, None)) is not None:
                return line
            self._is_read = True
            self._on_read()
        except Exception as error:  # reported by the batch's task; other batches continue
            self._fail(error)
        self._num_taken -= 1
        return None

    def begin(self, line: LineSpan, task: asyncio.Task[None]) -> None:
        """Count a request as in flight until its task ends; a cancelled one is put back."""
        self._in_flight.add(task)
        task.add_done_callback(lambda _: self._end(line, task))

    def drop(self) -> None:
        self._num_taken -= 1

    def add_output(self, line: RenderedLine) -> None:
        self._output.append(line)

    def take_output(self) -> list[RenderedLine]:
        taken, self._output = self._output, []
        return taken

    def _end(self, line: LineSpan, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._num_taken -= 1
        if task.cancelled():
            self._put_back.append(line)
        elif (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.is_stopped = True

    def cancel(self) -> None:
        """Stop, and cancel the requests in flight."""
        self.is_stopped = True
        for task in self._in_flight:
            task.cancel()


class Executor:
    """Starts the requests of the batches that were added."""

    def __init__(self, core: Core, gaps: TrafficGaps, timeout_s: float) -> None:
        self._core = core
        self._gaps = gaps
        self._timeout_s = timeout_s  # per request
        self._runs: list[BatchRun] = []
        self._turns = itertools.count(1)
        self._last_turn: dict[str, int] = {}
        self._changed = asyncio.Event()

    def add(self, run: BatchRun) -> None:
        self._runs.append(run)
        self._changed.set()

    def remove(self, run: BatchRun) -> None:
        """Cancel a batch's requests in flight, also of a removed one; start no others."""
        run.cancel()
        if run in self._runs:
            self._runs.remove(run)

    async def run(self) -> None:
        """Start one request after the other, until cancelled."""
        while True:
            # the oldest batch of the API key whose last turn is the longest ago
            runs = [run for run in self._runs if run.has_lines]
            run = min(
                runs,
                key=lambda run: (self._last_turn.get(run.owner, 0), run.batch_id),
                default=None,
            )
            if run is None:
                self._changed.clear()
                await self._changed.wait()
            elif (line := await run.take_line()) is not None:
                await self._gaps.wait()
                self._begin(run, line)

    def _begin(self, run: BatchRun, line: LineSpan) -> None:
        if run.is_stopped:
            run.drop()
            return
        self._last_turn[run.owner] = next(self._turns)
        task = self._gaps.start(self._answer(run, line))
        run.begin(line, task)
        task.add_done_callback(lambda _: self._changed.set())

    async def _answer(self, run: BatchRun, line: LineSpan) -> None:
        request = FiledRequest(run.source, line, self._core, self._timeout_s)
        output = await request.answered(lambda: run.is_stopped)
        if output is not None:
            run.add_output(output)
