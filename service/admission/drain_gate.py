"""The way into the gateway: counts the requests inside, and lets no more in once it is closed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import NotReady


class Entrance:
    """Open from the start; `close` once."""

    def __init__(self) -> None:
        self._num_inside = 0
        self._emptied = asyncio.Event()
        self.is_closed = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count what is done meanwhile as a request that is at work."""
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._note()

    def check(self) -> None:
        """Raise `NotReady` if no more are let in."""
        if self.is_closed:
            raise NotReady("the service is stopping; ask another replica, or this one again in a minute")

    async def close(self) -> None:
        """Let no more in, and return when all who are inside have left."""
        self.is_closed = True
        self._note()
        await self._emptied.wait()

    def _note(self) -> None:
        if self.is_closed and not self._num_inside:
            self._emptied.set()
