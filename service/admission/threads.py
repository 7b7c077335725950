"""Threads for work that would hold up the event loop, shared fairly by clients.

Each kind of work has threads of its own: one kind never delays another. A free thread goes to the
waiting client whose work has taken the least time, so that seconds of one client are not in front
of milliseconds of another. A client gets all threads but one. The time is measured, not estimated.

Source of the order: virtual runtimes, Linux Documentation/scheduler/sched-design-CFS.rst.
"""

import asyncio
import contextvars
import functools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from wire.host import num_cores

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")

# the client whose request this task answers, as its quota names it
current_client = contextvars.ContextVar("current_client", default="")


@dataclass(slots=True)
class _Client:
    used_s: float
    num_running: int = 0
    waiting: "deque[asyncio.Future[None]]" = field(default_factory=deque)


class FairThreads:
    """Threads of one kind of work."""

    def __init__(
        self, name: str, num_threads: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._executor = ThreadPoolExecutor(num_threads, name)
        self._num_free = num_threads
        self._max_of_client = max(1, num_threads - 1)
        self._clients: dict[str, _Client] = {}  # only clients that have work
        self._num_waiting = 0

    async def run(
        self, function: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> ResultT:
        """Run `function` in a thread, which cannot be stopped: if cancelled, wait for it first."""
        name = current_client.get()
        if name not in self._clients:  # it begins behind none, and ahead of none
            least_s = min((client.used_s for client in self._clients.values()), default=0.0)
            self._clients[name] = _Client(least_s)
        client = self._clients[name]
        if self._num_free and client.num_running < self._max_of_client:
            client.num_running += 1
            self._num_free -= 1
        else:
            await self._turn(name, client)
        start_s = self._now()
        try:
            work = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
            running = asyncio.get_running_loop().run_in_executor(self._executor, work)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.gather(running, return_exceptions=True)
                raise
            finally:
                # else its exception's frame would refer to it: a cycle that keeps the arguments
                del running
        finally:
            self._end(name, client, self._now() - start_s)

    async def _turn(self, name: str, client: _Client) -> None:
        """Wait for a thread, which then counts as one of the client's."""
        turn = asyncio.Future[None]()
        client.waiting.append(turn)
        self._num_waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn in client.waiting:
                client.waiting.remove(turn)
                self._num_waiting -= 1
            if not turn.cancelled():  # its thread has just become free
                self._end(name, client, 0.0)
            elif self._clients.get(name) is client and not (client.num_running or client.waiting):
                del self._clients[name]
            raise

    def _end(self, name: str, client: _Client, duration_s: float) -> None:
        client.used_s += duration_s
        client.num_running -= 1
        self._num_free += 1
        while self._num_waiting and self._start_next():
            pass
        if not client.num_running and not client.waiting:
            del self._clients[name]

    def _start_next(self) -> bool:
        """Give a free thread to a waiting client; return False if there is none for any."""
        ready: list[_Client] = []
        for client in self._clients.values():
            if client.waiting and client.num_running < self._max_of_client:
                ready.append(client)
        if not self._num_free or not ready:
            return False
        client = min(ready, key=lambda client: client.used_s)
        turn = client.waiting.popleft()
        self._num_waiting -= 1
        if not turn.cancelled():
            turn.set_result(None)
            client.num_running += 1
            self._num_free -= 1
        return True


_NUM_THREADS = min(max(2, num_cores()), 8) + 1
# request bodies, configurations; parsers keep the interpreter's lock: more threads delay the loop
PARSING = FairThreads("parsing", 2)
DECODING = FairThreads("decoding", _NUM_THREADS)  # headers, pixels, resizing
POSTPROCESSING = FairThreads("postprocessing", _NUM_THREADS)  # answers
STORING = FairThreads("storing", _NUM_THREADS)  # stored images
