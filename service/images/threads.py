"""Work in threads, off the event loop."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


async def in_thread(function: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
    """Run `function` in a thread; cancelled, wait for its end all the same.

    A thread cannot be stopped: a request that is given up holds its place among those at work until its thread is free.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
