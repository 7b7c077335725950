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
    caller = asyncio.current_task()
    assert caller is not None
    num_cancellations = caller.cancelling()
    is_working = True

    async def cancel_when_disconnected() -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            if is_working:
                caller.cancel()

    disconnection = asyncio.create_task(cancel_when_disconnected())
    try:
        return await work
    except asyncio.CancelledError:
        # more than once: the caller was cancelled, too
        if not disconnection.done() or caller.cancelling() > num_cancellations + 1:
            raise
        disconnection.result()
        raise ClientDisconnect from None
    finally:
        is_working = False
        if disconnection.done():
            caller.uncancel()
        disconnection.cancel()
