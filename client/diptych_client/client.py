"""`Client` blocks, `AsyncClient` is for asyncio; their methods take and return the same.

A call is one for both: `_Caller` retries it, a transport sends each attempt.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar, Generic, Self, TypeVar
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, BaseRetrying, Retrying

from diptych_client.analysis import Analysis
from diptych_client.errors import DiptychError, ImageExpired, InvalidRequest, NotFound
from diptych_client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    AnswerOptions,
    ImageSource,
    Request,
    Step,
    StoredImage,
    TaskParameters,
    encoded_image,
    image_request,
    task_request,
)
from diptych_client.results import Answer, Comparison, Model, Task
from diptych_client.retries import retrying
from diptych_client.transports.grpc_transports import AsyncGrpcTransport, GrpcTransport
from diptych_client.transports.operations import (
    ANALYZE,
    COMPARE,
    MODELS,
    PREDICT,
    STORE,
    TASKS,
    Call,
    Operation,
    removal,
)
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
        return self._ask(PREDICT, request, self._transport.send)

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
        first, events = self._ask(PREDICT, request, self._start)
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
        return self._ask(COMPARE, request, self._transport.send)

    def analyze(self, image: ImageSource, steps: Sequence[Step]) -> Analysis:
        """Answer many questions about one image; a step may be asked about each box of another.

        The fields of a step are those of `POST /v1/analyze`.
        """
        request = image_request(image, {"steps": tuple(steps)})
        return self._ask(ANALYZE, request, self._transport.send)

    @contextmanager
    def image(self, image: ImageSource) -> Generator[StoredImage, None, None]:
        """Send an image once for all calls in the context, which take what it yields as the image.

        It is sent again if the service has dropped it, and with each call if it stores none.
        """
        stored = StoredImage(encoded_image(image))
        self._store(stored)
        try:
            yield stored
        finally:
            if stored.id is not None:
                with suppress(DiptychError):  # it expires by itself
                    self._call(removal(stored.id), Request(), self._transport.send)

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

    def _ask(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Call[ResultT]], SentT],
    ) -> SentT:
        """Do as `_call`; store an image again that has expired."""
        try:
            return self._call(operation, request, send)
        except ImageExpired:
            if request.stored is None:
                raise
            self._store(request.stored)
        return self._call(operation, replace(request, image=request.stored.sent), send)

    def _store(self, image: StoredImage) -> None:
        image.id = None
        if isinstance(self._transport, RestTransport):
            with suppress(NotFound, InvalidRequest):  # the service stores none, or is an older one
                image.id = self._call(STORE, Request(image.data), self._transport.send)

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
        return await self._ask(PREDICT, request, self._transport.send)

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
        first, events = await self._ask(PREDICT, request, self._start)
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
        return await self._ask(COMPARE, request, self._transport.send)

    async def analyze(self, image: ImageSource, steps: Sequence[Step]) -> Analysis:
        """Answer many questions about one image; a step may be asked about each box of another.

        The fields of a step are those of `POST /v1/analyze`.
        """
        request = image_request(image, {"steps": tuple(steps)})
        return await self._ask(ANALYZE, request, self._transport.send)

    @asynccontextmanager
    async def image(self, image: ImageSource) -> AsyncGenerator[StoredImage, None]:
        """Send an image once for all calls in the context, which take what it yields as the image.

        It is sent again if the service has dropped it, and with each call if it stores none.
        """
        stored = StoredImage(encoded_image(image))
        await self._store(stored)
        try:
            yield stored
        finally:
            if stored.id is not None:
                with suppress(DiptychError):  # it expires by itself
                    await self._call(removal(stored.id), Request(), self._transport.send)

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

    async def _ask(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Call[ResultT]], Awaitable[SentT]],
    ) -> SentT:
        """Do as `_call`; store an image again that has expired."""
        try:
            return await self._call(operation, request, send)
        except ImageExpired:
            if request.stored is None:
                raise
            await self._store(request.stored)
        return await self._call(operation, replace(request, image=request.stored.sent), send)

    async def _store(self, image: StoredImage) -> None:
        image.id = None
        if isinstance(self._transport, AsyncRestTransport):
            with suppress(NotFound, InvalidRequest):  # the service stores none, or is an older one
                image.id = await self._call(STORE, Request(image.data), self._transport.send)

    async def _start(self, call: Call[Answer]) -> tuple[str | Answer, AsyncEvents]:
        events = self._transport.stream(call)
        return await anext(events), events
