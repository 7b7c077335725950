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


@types.coroutine
def _run_cancelled(
    work: Coroutine[Any, Any, object], number: int, after_event: bool
) -> Generator[Any, None, bool]:
    """Cancel `work` at its suspension of this number, from 1; return False if it has fewer."""
    task = asyncio.current_task()
    assert task is not None
    error: BaseException | None = None
    for suspension in itertools.count(1):
        try:
            awaited = work.send(None) if error is None else work.throw(error)
        except (StopIteration, asyncio.CancelledError):
            if task.cancelling():
                task.uncancel()
            return suspension > number
        is_chosen = suspension == number
        if is_chosen and not after_event:
            task.cancel()
        error = None
        try:
            yield awaited
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if is_chosen and after_event:
            error = asyncio.CancelledError()
    raise AssertionError


async def cancel_at_each_await(
    work: Callable[[], Coroutine[Any, Any, object]], check: Callable[[], Awaitable[object]]
) -> int:
    """Cancel `work` at each suspension in turn, and `check` after each; return how many."""
    num_cancelled = 0
    for after_event in (False, True):
        for number in itertools.count(1):
            was_cancelled = await _run_cancelled(work(), number, after_event)
            await check()
            if not was_cancelled:
                break
            num_cancelled += 1
    return num_cancelled
