"""Registers every method as one that receives a stream of bytes (incoming.py)."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing, suppress
from typing import Any

import grpc
from google.protobuf.message import Message

from service.admission.load import ClientSlots
from service.errors import ServiceError
from service.rpc.boundary import CODES
from service.rpc.incoming import SMALL_SLOTS, SMALL_SLOTS_OF_ADDRESS, Context, Incoming, NoMessage

Handler = Any  # grpc.RpcMethodHandler, which has no types
Messages = AsyncIterator[bytes]


class ReadOnDemand(grpc.aio.ServerInterceptor):
    """Gives methods of `own` services an `Incoming`, and others a message it has read."""

    def __init__(self, own: Collection[str]) -> None:
        self._own = own
        self._small = ClientSlots(SMALL_SLOTS, SMALL_SLOTS_OF_ADDRESS)

    async def intercept_service(self, continuation: Any, details: Any) -> Handler:
        """Return the handler of a call, or None for an unknown method."""
        handler = await continuation(details)
        if handler is None:
            return None
        is_own = details.method.split("/")[1] in self._own
        if handler.unary_unary is not None:

            async def unary(messages: Messages, context: Context) -> Message:
                incoming = self._incoming(handler, messages, context)
                request = incoming if is_own else await _read(incoming, context)
                reply: Message = await handler.unary_unary(request, context)
                return reply

            return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)

        async def write(messages: Messages, context: Context) -> None:
            """Read for the stream of health, which writes."""
            message = await _read(self._incoming(handler, messages, context), context)
            await handler.unary_stream(message, context)

        async def answers(messages: Messages, context: Context) -> AsyncGenerator[Message, None]:
            incoming = self._incoming(handler, messages, context)
            async with aclosing(_each(incoming, context)) as requests:
                replies = (
                    handler.unary_stream(incoming, context)
                    if is_own
                    else handler.stream_stream(requests, context)  # reflection
                )
                async with aclosing(replies) as each:
                    async for message in each:
                        yield message

        stream = answers if is_own or handler.unary_stream is None else write
        return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)

    def _incoming(self, handler: Handler, messages: Messages, context: Context) -> Incoming:
        message_class = handler.request_deserializer.__self__  # its method FromString
        return Incoming(messages, message_class, self._small, str(context.peer()))


async def _read(incoming: Incoming, context: Context) -> Message:
    """Return the message of a call; end the call if there is none, or a malformed one."""
    try:
        return await incoming.read_small()
    except NoMessage:
        raise
    except ServiceError as error:
        await context.abort(CODES[error.code], error.message, (("diptych-code", error.code),))
        raise AssertionError("context.abort() returned") from error


async def _each(incoming: Incoming, context: Context) -> AsyncGenerator[Message, None]:
    with suppress(NoMessage):
        while True:
            yield await _read(incoming, context)
