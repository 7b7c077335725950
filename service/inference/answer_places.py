"""Several answers of one call, and their places: its own, lent to one at a time, and further ones.

A call keeps its place while it has a body or images in memory. If each answer needed a further
place, the calls that hold all places would wait for each other for ever; so would the only call of
a key with `max_concurrent` 1. Invariant: while an answer waits, another one has the lent place, and
wakes it when it is done.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from service.admission.places import Place, Places, RequestContext
from service.errors import Overloaded, ServiceError
from service.images.inputs import ImageInput
from service.inference.core import Core
from service.inference.recording import record_error

AnswerT = TypeVar("AnswerT")

MAX_IMAGES = 32  # one request


class AnswerPlaces:
    """The places of one call."""

    def __init__(self, places: Places) -> None:
        self._places = places
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
                await self._places.take(further)
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
                await self._places.leave(further)
            self._given_back.set()


async def answer_each(
    core: Core,
    images: Sequence[ImageInput],
    context: RequestContext,
    ask: Callable[[ImageInput, RequestContext], Awaitable[AnswerT]],
) -> list[AnswerT | ServiceError]:
    """Return what `ask` returns or raises for each image, in order.

    Raise the error that every image met if it does not concern the image. An image waits for a
    place while others of the request have one; each counts as a request of the key.
    """
    answer_places = AnswerPlaces(core.places)

    async def answer(index: int) -> AnswerT | ServiceError:
        try:
            async with answer_places.place(replace(context)) as image_context:
                if index > 0:  # the request itself has been counted
                    await context.quota.take_request()
                return await ask(images[index], image_context)
        except ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(answer(index)) for index in range(len(images))]
    outcomes = [task.result() for task in running]
    errors = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    kinds = {(error.code, error.param) for error in errors}
    if len(errors) == len(outcomes) and len(kinds) == 1 and errors[0].param != "image":
        raise errors[0]
    for error in errors:
        record_error(error, context.api, context.request_id)
    return outcomes
