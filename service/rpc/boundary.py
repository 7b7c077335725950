"""The boundary around every gRPC method: request id, deadline, API key, and errors as statuses.

Key and place of a call are checked before its message is read: grpc reads it before it calls the
method, so that anybody could send large ones. Each method is therefore registered as one that
receives a stream of bytes, which is the same on the wire. Values are counted there before a message
is parsed: an empty message takes two bytes on the wire and about a hundred when it is parsed, so
that 20 MB of them would take gigabytes. Source of the format: Protocol Buffers, "Encoding".

Metadata of a call: `authorization` (Bearer KEY), `traceparent`, and `x-request-id`, which a
message's own `id` overrides. The deadline of a call is the request's, and cancelling a call cancels
its sequences. Trailing metadata: `x-trace-id`, and of an error `x-request-id`, `diptych-code` (as
in REST), `diptych-param` and, if a retry may succeed, `retry-after` in seconds.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.semconv._incubating.attributes.rpc_attributes import (
    RPC_METHOD,
    RPC_RESPONSE_STATUS_CODE,
    RPC_SYSTEM_NAME,
)

from service.admission.addresses import client_address, client_of, parse_networks
from service.admission.api_keys import ApiKeys
from service.admission.fair_queue import ClientSlots, FairSlots
from service.admission.places import RequestContext, request_id_or_new
from service.admission.threads import current_client
from service.errors import DeadlineExceeded, ErrorCode, InvalidRequest, ServiceError
from service.inference.core import Core
from service.inference.recording import record_failure, record_gone_client
from service.rpc.proto import vision_pb2 as pb
from service.settings import Settings
from wire.telemetry.tracing import request_trace, trace_id

Descriptor = Any  # protobuf's Python or upb: they have no common type

_VARINT = 0
_FIXED64 = 1
_BYTES = 2
_FIXED32 = 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES = 10
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def num_values(data: bytes, descriptor: Descriptor, maximum: int) -> int:
    """Count fields, list elements and map entries, up to `maximum` or where a message is cut."""
    count = 0
    pending: list[tuple[Descriptor, int, int]] = [(descriptor, 0, len(data))]
    while pending:
        of_message, position, end = pending.pop()
        while position < end and count <= maximum:
            count += 1
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind != _BYTES:
                if kind == _VARINT:
                    _, position = _varint(data, position)
                else:  # a group has its fields behind its start
                    position += _FIXED_BYTES.get(kind, 0)
                continue
            length, position = _varint(data, position)
            field = of_message.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                pending.append((field.message_type, position, min(position + length, end)))
            elif field is not None and field.type not in _TEXTS:
                count += length  # packed numbers, of a byte or more
            position += length
    return count


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    return value, len(data)


CODES: dict[ErrorCode, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "image_expired": grpc.StatusCode.NOT_FOUND,
    "image_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "payload_too_large": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported_image": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported_task": grpc.StatusCode.INVALID_ARGUMENT,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "internal": grpc.StatusCode.INTERNAL,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "runner_failed": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}

VISION: str = pb.DESCRIPTOR.services_by_name["Vision"].full_name
API = "grpc"  # label in metrics
_LISTS = ("/ListModels", "/ListTasks")  # others have images: they are read in a place of the client

Context = Any  # grpc.aio.ServicerContext, which has no types

_MAX_VALUES = 10_000  # the limit of a JSON body
_VALUE_BYTES = 100
_FIELDS_BYTES = 100_000  # a message without its image
_COPIES = 3  # the message, its parsed fields, and the image taken out of them
# Messages of lists, health and reflection have names only.
MAX_SMALL_BYTES = 65_536
SMALL_SLOTS = 8
SMALL_SLOTS_OF_ADDRESS = 2
_SMALL_TIMEOUT_S = 10.0


class Incoming:
    """The messages of one call, whose client has this `address`."""

    def __init__(
        self,
        messages: AsyncIterator[bytes],
        message_class: type[Message],
        small: ClientSlots,
        address: str,
    ) -> None:
        self._messages = messages
        self._message_class = message_class
        self._small = small
        self.address = address

    async def read(
        self,
        deadline_s: float,
        slot: AbstractAsyncContextManager[None],
        hold: Callable[[int], None],
    ) -> Message | None:
        """Return the next message, of a call that has a place, read in a slot of its client.

        `hold` counts its bytes.
        """
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()), slot:
                message = await anext(self._messages, None)
        except TimeoutError as error:
            problem = "the call's message was not received before the deadline"
            raise DeadlineExceeded(problem) from error
        if message is not None:
            count = num_values(message, self._message_class.DESCRIPTOR, _MAX_VALUES)
            if count > _MAX_VALUES:
                problem = f"the message has more than {_MAX_VALUES} fields, elements and entries"
                raise InvalidRequest(problem)
            hold(_COPIES * len(message) + _VALUE_BYTES * count)
        return self._parsed(message)

    async def read_small(self) -> Message | None:
        """Return the next message of a call without a place, within seconds."""
        try:
            slot = self._small.slot(client_of(self.address))
            async with asyncio.timeout(_SMALL_TIMEOUT_S), slot:
                message = await anext(self._messages, None)
        except TimeoutError as error:
            problem = f"the call's message was not received within {_SMALL_TIMEOUT_S:g} s"
            raise DeadlineExceeded(problem) from error
        if message is not None and len(message) > MAX_SMALL_BYTES:
            problem = f"the message has {len(message)} bytes; at most {MAX_SMALL_BYTES} are allowed"
            raise ServiceError(problem, code="payload_too_large")
        return self._parsed(message)

    def _parsed(self, message: bytes | None) -> Message | None:
        try:
            return None if message is None else self._message_class.FromString(message)
        except DecodeError as error:
            raise InvalidRequest("the message is malformed: it is not one of the method") from error


_NO_MESSAGE = "the call has no message"


def peer_address(peer: str) -> str:
    """Return the address of a peer: grpc writes ipv4:HOST:PORT or ipv6:%5BHOST%5D:PORT."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


async def read_messages(context: Context) -> AsyncGenerator[bytes, None]:
    """Yield the messages of a call. grpc's own iterator keeps the last one, in a cycle."""
    messages = [await context.read()]
    while messages[0] is not grpc.aio.EOF:
        yield messages.pop()
        messages.append(await context.read())


def metadata_of(context: Context) -> dict[str, str]:
    """Return the metadata by name; repeated values as a list, as in a header."""
    metadata: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        metadata[name] = f"{metadata[name]}, {value}" if name in metadata else str(value)
    return metadata


async def abort(
    context: Context, error: ServiceError, ids: tuple[tuple[str, str], ...] = ()
) -> None:
    trailing = [*ids, ("diptych-code", error.code)]
    if error.param is not None:
        trailing.append(("diptych-param", error.param))
    if error.retry_after_s is not None:
        trailing.append(("retry-after", str(error.retry_after_s)))
    await context.abort(CODES[error.code], error.message, tuple(trailing))


def max_message_bytes(settings: Settings) -> int:
    return settings.max_body_bytes + _FIELDS_BYTES


def without_frames(error: BaseException) -> BaseException:
    """Return an error without the frames in which it was raised, and without the error before."""
    error.__context__ = None
    return error.with_traceback(None)


class GrpcBoundary(grpc.aio.ServerInterceptor):
    """Gives the methods of Vision message and context, those of health and reflection messages."""

    def __init__(self, core: Core, api_keys: ApiKeys, settings: Settings) -> None:
        self._core = core
        self._api_keys = api_keys
        self._settings = settings
        self._small = ClientSlots(SMALL_SLOTS, SMALL_SLOTS_OF_ADDRESS)
        # A message that is read takes its size twice, in grpc and in Python: together half of the
        # memory of requests, which counts it when its size is known.
        num_slots = settings.max_request_bytes // (4 * max_message_bytes(settings))
        self._reading = FairSlots(max(2, num_slots))
        self._proxies = parse_networks(settings.trusted_proxies)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        is_ours = details.method.startswith(f"/{VISION}/")
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_stream
        message_class = handler.request_deserializer.__self__  # its method FromString

        def incoming(context: Context) -> Incoming:
            forwarded = metadata_of(context).get("x-forwarded-for")
            peer = peer_address(str(context.peer()))
            address = client_address(peer, forwarded, self._proxies)
            return Incoming(read_messages(context), message_class, self._small, address)

        async def answer(context: Context) -> Any:
            """Answer one message; the stream of health is written, not returned."""
            received = incoming(context)
            if not is_ours:
                async with aclosing(self._messages(received, context)) as sent:
                    async for message in sent:
                        return await behavior(message, context)
                await abort(context, InvalidRequest(_NO_MESSAGE))
            async with self._call(details.method, received, context) as (message, call):
                return await behavior(message, call)
            raise AssertionError("context.abort() returned")

        async def answers(context: Context) -> AsyncGenerator[Message, None]:
            received = incoming(context)
            if is_ours:
                async with (
                    self._call(details.method, received, context) as (message, call),
                    aclosing(behavior(message, call)) as replies,
                ):
                    async for reply in replies:
                        yield reply
                return
            async with (  # reflection
                aclosing(self._messages(received, context)) as requests,
                aclosing(behavior(requests, context)) as replies,
            ):
                async for reply in replies:
                    yield reply

        # What aborts a call stays in its context, with the frame below, which must hold no message:
        # a cycle, until the garbage collector runs.
        async def answer_once(_messages: object, context: Context) -> Any:
            try:
                return await answer(context)
            except grpc.aio.AbortError as error:
                raise without_frames(error) from None

        async def answer_many(_messages: object, context: Context) -> AsyncGenerator[Message, None]:
            try:
                async with aclosing(answers(context)) as replies:
                    async for reply in replies:
                        yield reply
            except grpc.aio.AbortError as error:
                raise without_frames(error) from None

        serializer = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(answer_once, None, serializer)
        is_health_stream = handler.unary_stream is not None and not is_ours
        stream = answer_once if is_health_stream else answer_many
        return grpc.stream_stream_rpc_method_handler(stream, None, serializer)

    async def _messages(
        self, incoming: Incoming, context: Context
    ) -> AsyncGenerator[Message, None]:
        try:
            while (message := await incoming.read_small()) is not None:
                yield message
        except ServiceError as error:
            await abort(context, error)

    @asynccontextmanager
    async def _call(
        self, method: str, incoming: Incoming, context: Context
    ) -> AsyncIterator[tuple[Message, RequestContext]]:
        """Yield message and context of a call; whatever is raised is its status."""
        metadata = metadata_of(context)
        request_id = request_id_or_new(metadata.get("x-request-id"))
        full_name = method.removeprefix("/")
        attributes = {RPC_SYSTEM_NAME: "grpc", RPC_METHOD: full_name}
        with request_trace(metadata, full_name, attributes) as span:
            trace = ("x-trace-id", trace_id())
            context.set_trailing_metadata((trace,))
            failure = call = None
            try:
                self._core.places.check_open()
                quota = self._api_keys.check(metadata.get("authorization"), incoming.address)
                quota.take_request()
                current_client.set(quota.name)
                limit_s = self._settings.request_timeout_s
                remaining_s = context.time_remaining()
                timeout_s = limit_s if remaining_s is None else min(remaining_s, limit_s)
                call = RequestContext(request_id, API, time.monotonic() + timeout_s, quota)
                message = await self._message(method, incoming, call)
                request_id = request_id_or_new(getattr(message, "id", None) or request_id)
                yield message, replace(call, request_id=request_id)
            except (asyncio.CancelledError, GeneratorExit):
                record_gone_client(API, request_id)
                span.set_attribute(RPC_RESPONSE_STATUS_CODE, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:
                failure = record_failure(error, API, request_id)
            finally:
                if call is not None:
                    self._core.places.leave(call)
            code = CODES[failure.code] if failure else grpc.StatusCode.OK
            span.set_attribute(RPC_RESPONSE_STATUS_CODE, code.name)
        if failure is not None:
            ids = (("x-request-id", request_id), trace)
            aborted = abort(context, failure, ids)
            del failure  # its traceback has this frame: a cycle, which would keep the message
            await aborted

    async def _message(self, method: str, incoming: Incoming, call: RequestContext) -> Message:
        if method.endswith(_LISTS):
            message = await incoming.read_small()
        else:
            self._core.places.take(call)
            slot = self._reading.slot(call.quota.name)
            hold = partial(self._core.places.hold, call)
            message = await incoming.read(call.deadline_s, slot, hold)
        if message is None:
            raise InvalidRequest(_NO_MESSAGE)
        return message
