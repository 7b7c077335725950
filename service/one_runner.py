"""A runner of this host, which the supervisor starts anew whenever it ends; calls wait in its socket meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic

import aiohttp

from service.runner_apis import ApiT, ResultT, RunnerLink

logger = logging.getLogger(__name__)

# What a call ends with whose connection was idle and just closed, or was not to be had, or whose runner died.
BROKEN = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
    aiohttp.ConnectionTimeoutError,
)
READY_TIMEOUT_S = 1
RETRY_PAUSE_S = 0.1  # until other connections that broke with one are known to be so


class OneRunner(Generic[ApiT]):
    """One process; a call whose connection broke is made again, once.

    That is safe, as an answer depends on nothing but its request.
    """

    num_replicas = 1

    def __init__(self, link: RunnerLink[ApiT]) -> None:
        self._link = link

    async def ask(
        self,
        call: Callable[[RunnerLink[ApiT]], Awaitable[ResultT]],
        cost: int,  # noqa: ARG002  # the interface has it
        key: bytes | None = None,  # noqa: ARG002
    ) -> ResultT:
        """Return what `call` returns of the process."""
        try:
            return await call(self._link)
        except BROKEN as error:
            logger.warning("asking %s again: %r", self._link.name, error)
            await asyncio.sleep(RETRY_PAUSE_S)
            return await call(self._link)

    async def is_ready(self) -> bool:
        """Say whether the process answers."""
        return await is_ready(self._link)


async def is_ready(link: RunnerLink[ApiT], timeout_s: int = READY_TIMEOUT_S) -> bool:
    """Say whether a process answers that it is ready."""
    try:
        return await link.api.is_ready(timeout_s)
    except (aiohttp.ClientError, TimeoutError):
        return False
