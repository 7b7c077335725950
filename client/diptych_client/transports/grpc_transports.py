"""gRPC, synchronous and for asyncio: one attempt of a call, to a result or a `DiptychError`."""

from collections.abc import AsyncGenerator, Generator
from typing import Any, TypeVar

import grpc
import grpc.aio

from diptych_client.errors import DiptychError
from diptych_client.results import Answer
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_messages import (
    error_from_call,
    event_from_message,
    request_message,
)
from diptych_client.transports.operations import Attempt, check_stream_is_complete, parsed

ResultT = TypeVar("ResultT")

_SERVICE = pb.DESCRIPTOR.services_by_name["Vision"].full_name
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # a mask of a large image is above the default of 4 MB
    # The delays between attempts are those of retries.py: a call on a broken channel reconnects at
    # once.
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
        self._api_key = api_key

    def send(self, attempt: Attempt[ResultT]) -> ResultT:
        operation = attempt.operation
        method = self._channel.unary_unary(
            f"/{_SERVICE}/{operation.method}",
            operation.request.SerializeToString,
            operation.response.FromString,
        )
        message = request_message(operation.request, attempt.request)
        metadata = _metadata(attempt, self._api_key)
        try:
            response = method(message, timeout=attempt.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        return parsed(operation.from_message, response, attempt)

    def stream(self, attempt: Attempt[Answer]) -> Generator[str | Answer, None, None]:
        """Yield pieces of the raw text, then the answer."""
        method = self._channel.unary_stream(
            f"/{_SERVICE}/PredictStream",
            pb.PredictRequest.SerializeToString,
            pb.PredictEvent.FromString,
        )
        message = request_message(pb.PredictRequest, attempt.request)
        metadata = _metadata(attempt, self._api_key)
        call = method(message, timeout=attempt.timeout_s, metadata=metadata)
        event = None
        try:
            for event_message in call:
                event = parsed(event_from_message, event_message, attempt)
                yield event
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        finally:
            call.cancel()
        check_stream_is_complete(event, attempt)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """A channel of one event loop."""

    def __init__(self, address: str, api_key: str | None, is_secure: bool) -> None:
        if is_secure:
            self._channel = grpc.aio.secure_channel(
                address, grpc.ssl_channel_credentials(), _OPTIONS
            )
        else:
            self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        self._api_key = api_key

    async def send(self, attempt: Attempt[ResultT]) -> ResultT:
        operation = attempt.operation
        method = self._channel.unary_unary(
            f"/{_SERVICE}/{operation.method}",
            operation.request.SerializeToString,
            operation.response.FromString,
        )
        message = request_message(operation.request, attempt.request)
        metadata = _metadata(attempt, self._api_key)
        try:
            response = await method(message, timeout=attempt.timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        return parsed(operation.from_message, response, attempt)

    async def stream(self, attempt: Attempt[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield pieces of the raw text, then the answer."""
        method = self._channel.unary_stream(
            f"/{_SERVICE}/PredictStream",
            pb.PredictRequest.SerializeToString,
            pb.PredictEvent.FromString,
        )
        message = request_message(pb.PredictRequest, attempt.request)
        metadata = _metadata(attempt, self._api_key)
        call = method(message, timeout=attempt.timeout_s, metadata=metadata)
        event = None
        try:
            async for event_message in call:
                event = parsed(event_from_message, event_message, attempt)
                yield event
        except grpc.RpcError as error:
            raise _call_error(error, attempt) from error
        finally:
            call.cancel()
        check_stream_is_complete(event, attempt)

    async def close(self) -> None:
        await self._channel.close()


def _metadata(attempt: Attempt[Any], api_key: str | None) -> tuple[tuple[str, str], ...]:
    key = () if api_key is None else (("authorization", f"Bearer {api_key}"),)
    return (("x-request-id", attempt.request_id), *key)


def _call_error(error: Any, attempt: Attempt[Any]) -> DiptychError:
    trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
    return error_from_call(
        error.code(), error.details() or "", trailing, attempt.timeout_s, attempt.request_id
    )
