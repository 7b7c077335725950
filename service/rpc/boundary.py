"""The boundary around every gRPC method: request id, deadline, API key, and errors as statuses.

Key and place of a call are checked before its message is read.

Metadata of a call: `authorization` (Bearer KEY), `traceparent`, and `x-request-id`, which a
message's own `id` overrides. The deadline of a call is the request's, and cancelling a call cancels
its sequences. Trailing metadata: `x-trace-id`, and of an error `x-request-id`, `diptych-code` (as
in REST), `diptych-param` and, if a retry may succeed, `retry-after` in seconds.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial, wraps
from typing import Any, ClassVar, TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry.semconv._incubating.attributes.rpc_attributes import (
    RPC_METHOD,
    RPC_RESPONSE_STATUS_CODE,
    RPC_SYSTEM_NAME,
)

from service.admission.api_keys import UNLIMITED, ApiKeys, Quota
from service.admission.places import RequestContext, request_id_or_new
from service.inference.core import Core
from service.inference.recording import record_failure, record_gone_client
from service.rpc.incoming import CODES, Context, Incoming, abort, metadata_of
from service.settings import Settings
from wire.telemetry.tracing import request_trace, trace_id


class GrpcApi:
    """A gRPC interface over the core."""

    api: ClassVar[str]  # label in metrics
    service: ClassVar[str]  # full name
    # their messages may be large: they are read in a place of the client's
    image_methods: ClassVar[frozenset[str]]
    open_methods: ClassVar[frozenset[str]] = frozenset()  # need no key
    health_methods: ClassVar[frozenset[str]] = frozenset()  # need one if `health_needs_key` is set

    def __init__(self, core: Core, api_keys: ApiKeys, settings: Settings) -> None:
        self._core = core
        self._api_keys = api_keys
        self._settings = settings

    @asynccontextmanager
    async def call(
        self, name: str, incoming: Incoming, context: Context
    ) -> AsyncIterator[tuple[Message, RequestContext]]:
        """Yield message and context of a call of method `name`; whatever is raised is its status.

        A health check has no span.
        """
        metadata = metadata_of(context)
        request_id = request_id_or_new(metadata.get("x-request-id"))
        if (task := asyncio.current_task()) is not None:
            task.set_name(f"request {request_id}")  # read by service/telemetry/loop_lag.py
        full_name = f"{self.service}/{name}"
        attributes = {RPC_SYSTEM_NAME: "grpc", RPC_METHOD: full_name}
        traced = None if name in self.health_methods else attributes
        with request_trace(metadata, full_name, traced) as span:
            trace = ("x-trace-id", trace_id())
            context.set_trailing_metadata((trace,))
            failure = call = None
            try:
                self._core.places.check_open()
                quota = await self._quota(name, metadata.get("authorization"), incoming.address)
                limit_s = self._settings.request_timeout_s
                remaining_s = context.time_remaining()
                timeout_s = limit_s if remaining_s is None else min(remaining_s, limit_s)
                call = RequestContext(request_id, self.api, time.monotonic() + timeout_s, quota)
                message = await self._read(name, incoming, call)
                request_id = request_id_or_new(getattr(message, "id", None) or request_id)
                yield message, replace(call, request_id=request_id)
            except (asyncio.CancelledError, GeneratorExit):
                record_gone_client(self.api, request_id)
                span.set_attribute(RPC_RESPONSE_STATUS_CODE, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:
                failure = record_failure(error, self.api, request_id)
            finally:
                if call is not None:
                    await self._core.places.leave(call)
            code = CODES[failure.code] if failure else grpc.StatusCode.OK
            span.set_attribute(RPC_RESPONSE_STATUS_CODE, code.name)
        if failure is not None:
            await abort(context, failure, (("x-request-id", request_id), trace))

    async def _quota(self, name: str, authorization: str | None, address: str) -> Quota:
        """Raise `Unauthorized` without an accepted key, `Overloaded` beyond its rate."""
        is_health = name in self.health_methods
        if name in self.open_methods or (is_health and not self._settings.health_needs_key):
            return UNLIMITED
        quota = self._api_keys.check(authorization, address)
        if not is_health:
            await quota.take_request()
        return quota

    async def _read(self, name: str, incoming: Incoming, call: RequestContext) -> Message:
        if name not in self.image_methods:
            return await incoming.read_small()
        await self._core.places.take(call)
        return await incoming.read(call.deadline_s, partial(self._core.places.hold, call))


AnswerT = TypeVar("AnswerT")
ApiT = TypeVar("ApiT", bound=GrpcApi)
Method = Callable[[ApiT, Any, RequestContext], Awaitable[AnswerT]]
Stream = Callable[[ApiT, Any, RequestContext], AsyncGenerator[AnswerT, None]]


def method(
    function: Method[ApiT, AnswerT],
) -> Callable[[ApiT, Incoming, Context], Awaitable[AnswerT]]:
    """Return `function` with its request context, and with a status for whatever it raises."""

    @wraps(function)
    async def answer(api: ApiT, incoming: Incoming, context: Context) -> AnswerT:
        async with api.call(function.__name__, incoming, context) as (message, call):
            return await function(api, message, call)
        raise AssertionError("context.abort() returned")

    return answer


def stream(
    function: Stream[ApiT, AnswerT],
) -> Callable[[ApiT, Incoming, Context], AsyncGenerator[AnswerT, None]]:
    """Do the same for a method with a stream of answers."""

    @wraps(function)
    async def answers(
        api: ApiT, incoming: Incoming, context: Context
    ) -> AsyncGenerator[AnswerT, None]:
        async with (
            api.call(function.__name__, incoming, context) as (message, call),
            aclosing(function(api, message, call)) as replies,
        ):
            async for reply in replies:
                yield reply

    return answers
