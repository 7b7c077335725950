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
    working = asyncio.ensure_future(work)
    if isinstance(working, asyncio.Task):
        working.set_name(caller.get_name())

    async def cancel_when_disconnected() -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            working.cancel()

    disconnection = asyncio.ensure_future(cancel_when_disconnected())
    try:
        return await working
    except asyncio.CancelledError:
        if caller.cancelling() or not disconnection.done():
            raise
        disconnection.result()
        raise ClientDisconnect from None
    finally:
        disconnection.cancel()
