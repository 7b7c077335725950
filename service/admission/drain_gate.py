"""Counts requests in flight, and admits no more once the service drains."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import NotReady


class DrainGate:
    """Open at first; `close` starts the drain and waits for its end."""

    def __init__(self) -> None:
        self._num_inside = 0
        self._drained = asyncio.Event()
        self.is_closed = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request in flight for as long as the context lasts."""
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._update()

    def check(self) -> None:
        """Raise `NotReady` if the gate is closed."""
        if self.is_closed:
            raise NotReady("the service is shutting down; retry on another replica, or here in a minute")

    async def close(self) -> None:
        """Admit no more requests, and return when none is in flight."""
        self.is_closed = True
        self._update()
        await self._drained.wait()

    def _update(self) -> None:
        if self.is_closed and not self._num_inside:
            self._drained.set()
