"""The calls of the core whose answers are our JSON, over REST and gRPC alike."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from service import analysis
from service.admission.places import RequestContext
from service.errors import ServiceError
from service.images.inputs import ImageInput
from service.inference.core import Core, Fields
from service.inference.recording import record_error
from service.schema.rendering import (
    AnalysisJson,
    AnswerJson,
    ComparisonJson,
    ErrorJson,
    OneJson,
    SeveralJson,
    analysis_json,
    answer_json,
    comparison_json,
    error_detail,
)

Call = Callable[[Core, Mapping[str, object], ImageInput, RequestContext], Awaitable[OneJson]]


async def predict(
    core: Core, fields: Fields, image: ImageInput, context: RequestContext
) -> AnswerJson:
    return answer_json(await core.predict(image, fields, context), context.request_id)


async def compare(
    core: Core, fields: Mapping[str, object], image: ImageInput, context: RequestContext
) -> ComparisonJson:
    return comparison_json(await core.compare(image, fields, context), context.request_id)


async def analyze(
    core: Core, fields: Mapping[str, object], image: ImageInput, context: RequestContext
) -> AnalysisJson:
    answered = await analysis.analyze(core, image, fields, context)
    return analysis_json(answered, context.request_id)


async def answer_each(
    core: Core,
    images: Sequence[ImageInput],
    context: RequestContext,
    answer: Callable[[ImageInput, RequestContext], Awaitable[OneJson]],
) -> SeveralJson:
    """Return what `answer` returns or raises for each image; raise what is the same for all."""

    async def answer_one(index: int) -> OneJson | ServiceError:
        try:
            async with core.answer_slot(context) as image_context:
                if index > 0:  # the request itself has been counted
                    context.quota.take_request()
                return await answer(images[index], image_context)
        except ServiceError as error:
            return error

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(answer_one(index)) for index in range(len(images))]
    answers: list[OneJson | ErrorJson] = []
    errors: list[ServiceError] = []
    for task in running:
        outcome = task.result()
        if isinstance(outcome, ServiceError):
            errors.append(outcome)
            answers.append(ErrorJson(error=error_detail(outcome, context.request_id)))
        else:
            answers.append(outcome)
    kinds = {(error.code, error.param) for error in errors}
    if len(errors) == len(images) and len(kinds) == 1 and errors[0].param != "image":
        raise errors[0]
    for error in errors:
        record_error(error, context.api, context.request_id)
    return SeveralJson(id=context.request_id, answers=answers)
