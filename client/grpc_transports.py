"""gRPC, with and without asyncio: one try of a call to a result or a `DiptychError`."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from client.errors import DiptychError
from client.grpc_messages import error_from_call, event_from_message, request_message
from client.operations import Attempt, ResultT
from client.results import Answer
from service.proto.vision_pb2_grpc import VisionStub

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the service is trusted; a mask of a large image is above 4 MB
    # A channel that lost its server looks again as soon as a call does: the waits between calls are ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcTransport:
    """A channel."""

    def __init__(self, address: str, api_key: str | None, is_secure: bool) -> None:
        if is_secure:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._stub: Any = VisionStub(self._channel)
        self._api_key = api_key

    def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        method, message = getattr(self._stub, attempt.operation.method), _message(attempt)
        try:
            answer = method(message, timeout=attempt.timeout_s, metadata=_metadata(attempt, self._api_key))
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        return attempt.operation.from_message(answer)

    def stream(self, attempt: Attempt[Answer]) -> Generator[str | Answer, None, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        metadata = _metadata(attempt, self._api_key)
        call = self._stub.PredictStream(_message(attempt), timeout=attempt.timeout_s, metadata=metadata)
        try:
            for event in call:
                yield event_from_message(event)
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """A channel of one event loop."""

    def __init__(self, address: str, api_key: str | None, is_secure: bool) -> None:
        if is_secure:
            self._channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        self._stub: Any = VisionStub(self._channel)
        self._api_key = api_key

    async def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        method, message = getattr(self._stub, attempt.operation.method), _message(attempt)
        try:
            answer = await method(message, timeout=attempt.timeout_s, metadata=_metadata(attempt, self._api_key))
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        return attempt.operation.from_message(answer)

    async def stream(self, attempt: Attempt[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        metadata = _metadata(attempt, self._api_key)
        call = self._stub.PredictStream(_message(attempt), timeout=attempt.timeout_s, metadata=metadata)
        try:
            async for event in call:
                yield event_from_message(event)
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _message(attempt: Attempt[Any]) -> Message:
    return request_message(attempt.operation.message, attempt.request)


def _metadata(attempt: Attempt[Any], api_key: str | None) -> list[tuple[str, str]]:
    key = [] if api_key is None else [("authorization", f"Bearer {api_key}")]
    return [("x-request-id", attempt.request_id), *key]


def _call_error(error: Any, attempt: Attempt[Any]) -> DiptychError:
    trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
    return error_from_call(error.code(), error.details() or "", trailing, attempt.timeout_s, attempt.request_id)
