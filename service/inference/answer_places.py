"""The places of a call's answers: its own, lent to one at a time, and further ones.

A call keeps its place while it has a body or images in memory. If each answer needed a further
place, the calls that hold all places would wait for each other for ever; so would the only call of
a key with `max_concurrent` 1. Invariant: while an answer waits, another one has the lent place, and
wakes it when it is done.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from service.errors import Overloaded
from service.inference.core import Core, Place, RequestContext


class AnswerPlaces:
    """The places of one call."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._is_lent = False
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def place(self, context: RequestContext) -> AsyncIterator[RequestContext]:
        """Wait for a place, and yield `context` with it."""
        further = replace(context, place=Place())
        while self._is_lent and not further.place.is_taken:
            # Cleared before the attempt: a place that is given back during it ends the wait
            self._given_back.clear()
            try:
                await self._core.take_place(further)
            except Overloaded:
                await self._given_back.wait()
        is_lent = not further.place.is_taken
        self._is_lent = self._is_lent or is_lent
        try:
            yield replace(further, needs_place=False) if is_lent else further
        finally:
            if is_lent:
                self._is_lent = False
            else:
                await self._core.leave(further)
            self._given_back.set()
