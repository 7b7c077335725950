"""gRPC: the methods of `diptych.v1.Vision` around the core. It knows no ports.

Metadata of a call: `authorization` (Bearer KEY) and `x-request-id`. A call's deadline is the request's, and a call that
is cancelled ends its sequences. An error's status has the trailing metadata `diptych-code` (as in REST),
`diptych-param` and, where it is worth to try again, `retry-after` in seconds.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from service import request_ids
from service.api_keys import ApiKeys
from service.core import Core, RequestContext
from service.errors import ErrorCode, Overloaded, ServiceError
from service.grpc_messages import (
    answer_message,
    comparison_message,
    event_message,
    models_message,
    request_fields,
    tasks_message,
)
from service.proto import vision_pb2 as pb
from service.proto import vision_pb2_grpc as pb_grpc
from service.recording import record_failure, record_gone_client
from service.settings import Settings
from service.streaming import answer_events

CODES: dict[ErrorCode, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "image_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "payload_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported_image": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported_task": grpc.StatusCode.INVALID_ARGUMENT,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}
_API = "grpc"

AnswerT = TypeVar("AnswerT")
Context = Any  # grpc.aio.ServicerContext, which has no types
Method = Callable[["VisionApi", Any, RequestContext], Awaitable[AnswerT]]
Stream = Callable[["VisionApi", Any, RequestContext], AsyncGenerator[AnswerT, None]]


def _method(function: Method[AnswerT]) -> "Callable[[VisionApi, Message, Context], Awaitable[AnswerT]]":
    """Give a method its context, check the key, and turn whatever it raises into the status of the contract."""

    @wraps(function)
    async def answer(api: "VisionApi", request: Message, context: Context) -> AnswerT:
        async with _call(api, context) as call:
            return await function(api, request, call)
        raise AssertionError("an aborted call goes on")

    return answer


def _stream(function: Stream[AnswerT]) -> "Callable[[VisionApi, Message, Context], AsyncGenerator[AnswerT, None]]":
    """Do the same for a method of many answers."""

    @wraps(function)
    async def answers(api: "VisionApi", request: Message, context: Context) -> AsyncGenerator[AnswerT, None]:
        async with _call(api, context) as call, aclosing(function(api, request, call)) as messages:
            async for message in messages:
                yield message

    return answers


@asynccontextmanager
async def _call(api: "VisionApi", context: Context) -> AsyncIterator[RequestContext]:
    metadata = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
    request_id = request_ids.request_id(metadata.get("x-request-id"))
    try:
        api.check_key(metadata.get("authorization"))
        yield RequestContext(request_id, _API, api.deadline_s(context))
    except (asyncio.CancelledError, GeneratorExit):
        record_gone_client(_API, request_id)
        raise
    except Exception as error:
        await _abort(context, record_failure(error, _API, request_id), request_id)


class VisionApi(pb_grpc.VisionServicer):
    """The gRPC interface of a core."""

    def __init__(self, core: Core, api_keys: ApiKeys, settings: Settings) -> None:
        self._core = core
        self._api_keys = api_keys
        self._settings = settings

    def check_key(self, authorization: str | None) -> None:
        """Raise `Unauthorized` unless the call has an accepted key."""
        self._api_keys.check(authorization)

    def deadline_s(self, context: Context) -> float:
        """Return the end of the call's time, at most the service's own, on the clock of time.monotonic()."""
        remaining_s = context.time_remaining()
        limit_s = self._settings.request_timeout_s
        return time.monotonic() + (limit_s if remaining_s is None else min(remaining_s, limit_s))

    @_method
    async def Predict(self, request: pb.PredictRequest, context: RequestContext) -> pb.Answer:
        """Answer with one model."""
        answer = await self._core.predict(request.image, request_fields(request), context)
        return answer_message(answer, context.request_id)

    @_stream
    async def PredictStream(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> AsyncGenerator[pb.PredictEvent, None]:
        """Answer with one model: the text as it is written, then the answer."""
        async with aclosing(answer_events(self._core, request.image, request_fields(request), context)) as events:
            async for event in events:
                yield event_message(event, context.request_id)

    @_method
    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        """Answer with several models at the same time."""
        comparison = await self._core.compare(request.image, request_fields(request), context)
        return comparison_message(comparison, context.request_id)

    @_method
    async def ListModels(self, _: pb.ListModelsRequest, __: RequestContext) -> pb.ListModelsResponse:
        """List the served models."""
        return models_message(self._core.models)

    @_method
    async def ListTasks(self, _: pb.ListTasksRequest, __: RequestContext) -> pb.ListTasksResponse:
        """List every task."""
        return tasks_message(self._core.models)


async def _abort(context: Context, error: ServiceError, request_id: str) -> None:
    """End the call with the status of `error`; this raises."""
    trailing = [("x-request-id", request_id), ("diptych-code", error.code)]
    if error.param is not None:
        trailing.append(("diptych-param", error.param))
    if isinstance(error, Overloaded):
        trailing.append(("retry-after", str(error.retry_after_s)))
    await context.abort(CODES[error.code], error.message, tuple(trailing))
