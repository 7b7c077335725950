"""Cancels a coroutine at each of its suspensions in turn, without a clock.

At one suspension it is cancelled twice, in two runs: while it waits, and when the event that it
waits for has come but the coroutine has not yet run. The second is the rare one: a lock is
acquired, a place is given, an answer has arrived.
"""

import asyncio
import itertools
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class _Cancelled:
    """A run of `work` that is cancelled at its suspension of this number, counted from 1."""

    def __init__(
        self, work: Coroutine[Any, Any, object], number: int, *, after_event: bool
    ) -> None:
        self.num_suspensions = 0
        self._work = work
        self._number = number
        self._after_event = after_event

    @types.coroutine
    def run(self) -> Generator[Any, None, None]:
        """Run to the end or to the cancellation."""
        error: BaseException | None = None
        while True:
            try:
                awaited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration:
                return
            self.num_suspensions += 1
            is_chosen = self.num_suspensions == self._number
            if is_chosen and not self._after_event:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            error = None
            try:
                yield awaited
            except asyncio.CancelledError as cancelled:
                error = cancelled
            if is_chosen and self._after_event:
                error = asyncio.CancelledError()


async def cancel_at_each_await(
    work: Callable[[], Coroutine[Any, Any, object]], check: Callable[[], Awaitable[object]]
) -> int:
    """Run `work` until it has been cancelled at each suspension, and `check` after each.

    Return how often it was.
    """
    num_cancelled = 0
    for after_event in (False, True):
        for number in itertools.count(1):
            cancelled = _Cancelled(work(), number, after_event=after_event)
            outcome, *_ = await asyncio.gather(_awaited(cancelled), return_exceptions=True)
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, asyncio.CancelledError
            ):
                raise outcome
            await check()
            if cancelled.num_suspensions < number:
                break
            num_cancelled += 1
    return num_cancelled


async def _awaited(cancelled: _Cancelled) -> None:
    await cancelled.run()
