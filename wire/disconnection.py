"""Cancellation of work when its client disconnects. Knows ASGI and nothing of the work."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

ResultT = TypeVar("ResultT")


async def while_connected(receive: Receive, work: Awaitable[ResultT]) -> ResultT:
    """Return the result of `work`; cancel it and raise `ClientDisconnect` on a disconnect.

    The request's body must have been read, so that `receive` returns only the disconnection.
    """
    working = asyncio.ensure_future(work)
    disconnection = asyncio.ensure_future(_disconnected(receive))
    if isinstance(working, asyncio.Task) and (task := asyncio.current_task()) is not None:
        working.set_name(task.get_name())
    disconnection.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if _is_caller_cancelled() or not disconnection.done():
            raise
        disconnection.result()
        raise ClientDisconnect from None
    finally:
        disconnection.cancel()


def _is_caller_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
