"""gRPC, synchronous and for asyncio: one attempt of a call, to a result or a `DiptychError`."""

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import grpc
import grpc.aio

from diptych_client.results import Answer
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_messages import (
    error_from_call,
    event_from_message,
    json_from_message,
    request_message,
)
from diptych_client.transports.operations import Call, check_stream_is_complete, parsed

ResultT = TypeVar("ResultT")

_SERVICE = pb.DESCRIPTOR.services_by_name["Vision"].full_name
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a mask of a large image is above the default of 4 MB
    # retries.py sets the delays between attempts: a call on a broken channel reconnects at once
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class _Channel:
    """Starts calls on a channel of `grpc` or `grpc.aio`, which have the same functions."""

    _grpc: ClassVar[ModuleType]

    def __init__(self, address: str, api_key: str | None, is_secure: bool) -> None:
        if is_secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = self._grpc.secure_channel(address, credentials, _OPTIONS)
        else:
            self._channel = self._grpc.insecure_channel(address, _OPTIONS)
        self._key = () if api_key is None else (("authorization", f"Bearer {api_key}"),)

    def _start(self, call: Call[Any], is_stream: bool = False) -> Any:
        """Return a response, or a stream's iterator; of `grpc.aio` an awaitable or async one."""
        operation = call.operation
        serialize = operation.request.SerializeToString
        if is_stream:
            path = f"/{_SERVICE}/{operation.method}Stream"
            method = self._channel.unary_stream(path, serialize, pb.PredictEvent.FromString)
        else:
            path = f"/{_SERVICE}/{operation.method}"
            method = self._channel.unary_unary(path, serialize, operation.response.FromString)
        message = request_message(operation.request, call.request)
        metadata = (("x-request-id", call.request_id), *self._key)
        return method(message, timeout=call.remaining_s(), metadata=metadata)


class GrpcTransport(_Channel):
    """A channel."""

    _grpc: ClassVar = grpc

    def send(self, call: Call[ResultT]) -> ResultT:
        with _status_errors(call):
            return _result(self._start(call), call)

    def stream(self, call: Call[Answer]) -> Generator[str | Answer, None, None]:
        """Yield pieces of the raw text, then the answer."""
        event = None
        with _status_errors(call):
            messages = self._start(call, is_stream=True)
            try:
                for message in messages:
                    event = parsed(event_from_message, message, call)
                    yield event
            finally:
                messages.cancel()
        check_stream_is_complete(event, call)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport(_Channel):
    """A channel of one event loop."""

    _grpc: ClassVar = grpc.aio

    async def send(self, call: Call[ResultT]) -> ResultT:
        with _status_errors(call):
            return _result(await self._start(call), call)

    async def stream(self, call: Call[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield pieces of the raw text, then the answer."""
        event = None
        with _status_errors(call):
            messages = self._start(call, is_stream=True)
            try:
                async for message in messages:
                    event = parsed(event_from_message, message, call)
                    yield event
            finally:
                messages.cancel()
        check_stream_is_complete(event, call)

    async def close(self) -> None:
        await self._channel.close()


def _result(message: Any, call: Call[ResultT]) -> ResultT:
    return parsed(lambda each: call.operation.from_json(json_from_message(each)), message, call)


@contextmanager
def _status_errors(call: Call[Any]) -> Iterator[None]:
    """Raise the error of gRPC as a `DiptychError`."""
    timeout_s = call.remaining_s()
    try:
        yield
    except grpc.RpcError as caught:
        error: Any = caught
        trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
        status = (error.code(), error.details() or "")
        place = (call.request_id, call.url, call.operation.method)
        raise error_from_call(*status, trailing, timeout_s, *place) from caught
