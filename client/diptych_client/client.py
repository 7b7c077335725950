"""The two clients: `Client` blocks, `AsyncClient` is for asyncio; their methods take and return the
same.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Generic, Self, TypeVar
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, Retrying

from diptych_client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    AnswerOptions,
    ImageSource,
    Request,
    TaskParameters,
    compare_request,
    predict_request,
)
from diptych_client.results import Answer, Comparison, Model, Task
from diptych_client.retries import retrying
from diptych_client.transports import (
    COMPARE,
    MODELS,
    PREDICT,
    TASKS,
    AsyncGrpcTransport,
    AsyncRestTransport,
    Attempt,
    GrpcTransport,
    Operation,
    RestTransport,
)

ResultT = TypeVar("ResultT")
ValueT = TypeVar("ValueT")

_MIN_TIMEOUT_S = 0.001  # a delay between retries may end late


class Client:
    """A connection to a service: `http://` or `https://` for REST, `grpc://` or `grpcs://` for
    gRPC.

    `timeout_s` is the deadline of a call, retries included; the service receives the remaining
    time. Every method raises `DiptychError`. Safe to share between threads.
    """

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 3,
    ) -> None:
        self._transport = transport_to(url, api_key)
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    def predict(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Answer:
        """Return the answer of one model; by default of the first that offers the task."""
        request = predict_request(image, task, model, parameters, options)
        return self._retried(PREDICT, request, self._transport.send)

    def stream(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Generator[str | Answer, None, None]:
        """Yield the raw text of one model in pieces as it is generated, then the answer.

        Closing the generator cancels the request. Only a failure before the first piece is retried.
        """
        request = predict_request(image, task, model, parameters, options)
        stream = self._retried(PREDICT, request, self._start)
        with closing(stream.rest) as rest:
            yield stream.first
            yield from rest

    def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Comparison:
        """Return the answers of several models, which run concurrently; by default of all that
        offer the task.
        """
        request = compare_request(image, task, models, parameters, options)
        return self._retried(COMPARE, request, self._transport.send)

    def models(self) -> tuple[Model, ...]:
        """Return the served models."""
        return self._retried(MODELS, Request(), self._transport.send)

    def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, each with the JSON Schema of its parameters and the models that offer
        it.
        """
        return self._retried(TASKS, Request(), self._transport.send)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, attempt: Attempt[Answer]) -> "_Stream":
        events = self._transport.stream(attempt)
        return _Stream(next(events), events)

    def _retried(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Attempt[ResultT]], ValueT],
    ) -> ValueT:
        call = _Call(operation, request, time.monotonic() + self._timeout_s, uuid.uuid4().hex)
        return retrying(Retrying, self._timeout_s, self._max_retries)(lambda: send(call.attempt()))


class AsyncClient:
    """The same for asyncio.

    Created and used in one running event loop; calls may run concurrently.
    """

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 3,
    ) -> None:
        self._transport = async_transport_to(url, api_key)
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    async def predict(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Answer:
        """Return the answer of one model; by default of the first that offers the task."""
        request = predict_request(image, task, model, parameters, options)
        return await self._retried(PREDICT, request, self._transport.send)

    async def stream(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> AsyncGenerator[str | Answer, None]:
        """Yield the raw text of one model in pieces as it is generated, then the answer.

        Closing the generator cancels the request. Only a failure before the first piece is retried.
        """
        request = predict_request(image, task, model, parameters, options)
        stream = await self._retried(PREDICT, request, self._start)
        async with aclosing(stream.rest) as rest:
            yield stream.first
            async for event in rest:
                yield event

    async def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Comparison:
        """Return the answers of several models, which run concurrently; by default of all that
        offer the task.
        """
        request = compare_request(image, task, models, parameters, options)
        return await self._retried(COMPARE, request, self._transport.send)

    async def models(self) -> tuple[Model, ...]:
        """Return the served models."""
        return await self._retried(MODELS, Request(), self._transport.send)

    async def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, each with the JSON Schema of its parameters and the models that offer
        it.
        """
        return await self._retried(TASKS, Request(), self._transport.send)

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self, attempt: Attempt[Answer]) -> "_AsyncStream":
        events = self._transport.stream(attempt)
        return _AsyncStream(await anext(events), events)

    async def _retried(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Attempt[ResultT]], Awaitable[ValueT]],
    ) -> ValueT:
        call = _Call(operation, request, time.monotonic() + self._timeout_s, uuid.uuid4().hex)

        async def send_attempt() -> ValueT:
            return await send(call.attempt())

        value: ValueT = await retrying(AsyncRetrying, self._timeout_s, self._max_retries)(
            send_attempt
        )
        return value


@dataclass(frozen=True, slots=True)
class _Call(Generic[ResultT]):
    """A call with the deadline and the id that its attempts share."""

    operation: Operation[ResultT]
    request: Request
    deadline_s: float  # of time.monotonic()
    request_id: str

    def attempt(self) -> Attempt[ResultT]:
        remaining_s = max(_MIN_TIMEOUT_S, self.deadline_s - time.monotonic())
        return Attempt(self.operation, self.request, self.request_id, remaining_s)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream whose first event arrived."""

    first: str | Answer
    rest: Generator[str | Answer, None, None]


@dataclass(frozen=True, slots=True)
class _AsyncStream:
    """The same for asyncio."""

    first: str | Answer
    rest: AsyncGenerator[str | Answer, None]


def transport_to(url: str, api_key: str | None) -> RestTransport | GrpcTransport:
    """Return the transport for a URL; raise `ValueError` for an invalid one."""
    scheme, address = _scheme_and_address(url)
    if scheme in ("http", "https"):
        return RestTransport(url, api_key)
    return GrpcTransport(address, api_key, is_secure=scheme == "grpcs")


def async_transport_to(url: str, api_key: str | None) -> AsyncRestTransport | AsyncGrpcTransport:
    """Return the transport for a URL in the running event loop.

    Raise `ValueError` for an invalid one.
    """
    scheme, address = _scheme_and_address(url)
    if scheme in ("http", "https"):
        return AsyncRestTransport(url, api_key)
    return AsyncGrpcTransport(address, api_key, is_secure=scheme == "grpcs")


def _scheme_and_address(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    is_rest = parts.scheme in ("http", "https")
    is_grpc = parts.scheme in ("grpc", "grpcs")
    if not parts.netloc or not (is_rest or (is_grpc and parts.port and parts.path in ("", "/"))):
        allowed = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
        raise ValueError(f"the URL of the service must be {allowed}, got {url!r}")
    return parts.scheme, parts.netloc
