"""Work that ends when the one who asked for it closes the connection. It knows ASGI and nothing of the work."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

ResultT = TypeVar("ResultT")


async def while_connected(receive: Receive, work: Awaitable[ResultT]) -> ResultT:
    """Return the result of `work`; cancel it and raise `ClientDisconnect` if the client goes before it is there.

    The body of the request must have been read: after it, `receive` has nothing to say but that the client is gone.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    leaving.add_done_callback(lambda _: working.cancel())
    try:
        return await working
    except asyncio.CancelledError:
        if _is_cancelled() or not leaving.done():
            raise
        leaving.result()
        raise ClientDisconnect from None
    finally:
        leaving.cancel()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
