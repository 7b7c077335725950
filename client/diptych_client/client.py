"""`Client` blocks, `AsyncClient` is for asyncio; their methods take and return the same.

A call is one for both: `_Caller` retries it, a transport sends each attempt.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar, Generic, Self, TypeVar
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, BaseRetrying, Retrying

from diptych_client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    AnswerOptions,
    ImageSource,
    Request,
    TaskParameters,
    task_request,
)
from diptych_client.results import Answer, Comparison, Model, Task
from diptych_client.retries import retrying
from diptych_client.transports.grpc_transports import AsyncGrpcTransport, GrpcTransport
from diptych_client.transports.operations import COMPARE, MODELS, PREDICT, TASKS, Call, Operation
from diptych_client.transports.rest_transports import AsyncRestTransport, RestTransport

ResultT = TypeVar("ResultT")
SentT = TypeVar("SentT")
TransportT = TypeVar("TransportT")
Events = Generator[str | Answer, None, None]
AsyncEvents = AsyncGenerator[str | Answer, None]


class _Caller(Generic[TransportT]):
    """Connects to a URL and retries calls; a subclass names the kind of loop and of transports."""

    _retrying: ClassVar[type[BaseRetrying]]
    _transports: ClassVar[tuple[type[Any], type[Any]]]  # REST, gRPC

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 3,
    ) -> None:
        rest, grpc = self._transports
        parts = urlsplit(url)
        is_grpc = parts.scheme in ("grpc", "grpcs") and parts.port and parts.path in ("", "/")
        if not parts.netloc or not (is_grpc or parts.scheme in ("http", "https")):
            allowed = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
            raise ValueError(f"the URL of the service must be {allowed}, got {url!r}")
        self._transport: TransportT
        if is_grpc:
            self._transport = grpc(parts.netloc, api_key, is_secure=parts.scheme == "grpcs")
        else:
            self._transport = rest(url, api_key)
        self._timeout_s = timeout_s
        self._max_retries = max_retries

    def _call(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Call[ResultT]], SentT],
    ) -> SentT:
        """Return what `send` returns, for asyncio an awaitable of it."""
        call = Call(operation, request, uuid.uuid4().hex, time.monotonic() + self._timeout_s)
        retry: Any = retrying(self._retrying, self._timeout_s, self._max_retries)
        sent: SentT = retry(send, call)
        return sent


class Client(_Caller[RestTransport | GrpcTransport]):
    """A connection to a service: `http(s)://` for REST, `grpc://` or `grpcs://` for gRPC.

    `timeout_s` is the deadline of a call, retries included; the service receives the remaining
    time. Every method raises `DiptychError`. Safe to share between threads.
    """

    _retrying = Retrying
    _transports = (RestTransport, GrpcTransport)

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
        chosen = {"task": task, "model": model}
        request = task_request(image, chosen, parameters, options)
        return self._call(PREDICT, request, self._transport.send)

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
        chosen = {"task": task, "model": model}
        request = task_request(image, chosen, parameters, options)
        first, events = self._call(PREDICT, request, self._start)
        with closing(events):
            yield first
            yield from events

    def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Comparison:
        """Return concurrent answers of several models, by default all that offer the task."""
        chosen = {"task": task, "models": None if models is None else tuple(models)}
        request = task_request(image, chosen, parameters, options)
        return self._call(COMPARE, request, self._transport.send)

    def models(self) -> tuple[Model, ...]:
        """Return the served models."""
        return self._call(MODELS, Request(), self._transport.send)

    def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, each with its parameters' JSON Schema and its models."""
        return self._call(TASKS, Request(), self._transport.send)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, call: Call[Answer]) -> tuple[str | Answer, Events]:
        events = self._transport.stream(call)
        return next(events), events


class AsyncClient(_Caller[AsyncRestTransport | AsyncGrpcTransport]):
    """The same for asyncio.

    Created and used in one running event loop; calls may run concurrently.
    """

    _retrying = AsyncRetrying
    _transports = (AsyncRestTransport, AsyncGrpcTransport)

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
        chosen = {"task": task, "model": model}
        request = task_request(image, chosen, parameters, options)
        return await self._call(PREDICT, request, self._transport.send)

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
        chosen = {"task": task, "model": model}
        request = task_request(image, chosen, parameters, options)
        first, events = await self._call(PREDICT, request, self._start)
        async with aclosing(events):
            yield first
            async for event in events:
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
        """Return concurrent answers of several models, by default all that offer the task."""
        chosen = {"task": task, "models": None if models is None else tuple(models)}
        request = task_request(image, chosen, parameters, options)
        return await self._call(COMPARE, request, self._transport.send)

    async def models(self) -> tuple[Model, ...]:
        """Return the served models."""
        return await self._call(MODELS, Request(), self._transport.send)

    async def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, each with its parameters' JSON Schema and its models."""
        return await self._call(TASKS, Request(), self._transport.send)

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self, call: Call[Answer]) -> tuple[str | Answer, AsyncEvents]:
        events = self._transport.stream(call)
        return await anext(events), events
