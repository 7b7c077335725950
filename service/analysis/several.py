"""Several images in one request: each is answered as its own request, or has its own error."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from service.errors import ServiceError
from service.images.url_rules import ImageInput
from service.inference.answer_places import AnswerPlaces
from service.inference.core import Core, RequestContext
from service.inference.recording import record_error

AnswerT = TypeVar("AnswerT")

MAX_IMAGES = 32  # one request


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
    places = AnswerPlaces(core)

    async def answer(index: int) -> AnswerT | ServiceError:
        try:
            async with places.place(replace(context)) as own:
                if index > 0:  # the request itself has been counted
                    await context.quota.take_request()
                return await ask(images[index], own)
        except ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(answer(index)) for index in range(len(images))]
    outcomes = [each.result() for each in running]
    errors = [each for each in outcomes if isinstance(each, ServiceError)]
    kinds = {(each.code, each.param) for each in errors}
    if len(errors) == len(outcomes) and len(kinds) == 1 and errors[0].param != "image":
        raise errors[0]
    for error in errors:
        record_error(error, context.api, context.request_id)
    return outcomes
