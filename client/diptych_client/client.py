"""`Client` blocks, `AsyncClient` is for asyncio; their methods take and return the same.

A call is one for both: `Caller` of caller.py retries it, a transport sends each attempt.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, closing
from itertools import chain
from typing import Any, Self, TypeVar

from tenacity import AsyncRetrying, Retrying

from diptych_client.caller import Caller, Options, Parameters
from diptych_client.downscaling import restored
from diptych_client.errors import DiptychError, affects_every_image
from diptych_client.image_sources import ImageSource
from diptych_client.progress import Bar
from diptych_client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    Request,
)
from diptych_client.results import Answer, Comparison, Model, Task
from diptych_client.transports.grpc_transports import AsyncGrpcTransport, GrpcTransport
from diptych_client.transports.operations import COMPARE, MODELS, PREDICT, TASKS, Call
from diptych_client.transports.rest_transports import AsyncRestTransport, RestTransport

ResultT = TypeVar("ResultT")
SentT = TypeVar("SentT")
TransportT = TypeVar("TransportT")
Events = Generator[str | Answer, None, None]
AsyncEvents = AsyncGenerator[str | Answer, None]
DEFAULT_CONCURRENCY = 8


class Client(Caller[RestTransport | GrpcTransport]):
    """A connection to a service: `http(s)://` for REST, `grpc://` or `grpcs://` for gRPC.

    `timeout_s` is the deadline of a call, retries included; the service receives the remaining
    time. `max_pixels`: larger images are sent smaller, and their answers scaled back. Every method
    raises `DiptychError`. Safe to share between threads.
    """

    _retrying = Retrying
    _transports = (RestTransport, GrpcTransport)

    def predict(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Answer:
        """Return the answer of one model; by default of the first that offers the task."""
        chosen = {"task": task, "model": model}
        prepared = self._prepare(image, bgr, chosen, parameters, options)
        answer = self._call(PREDICT, prepared.request, self._transport.send)
        return restored(answer, prepared.original)

    def predict_many(
        self,
        images: Iterable[ImageSource],
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool = False,
    ) -> Generator[Answer | DiptychError, None, None]:
        """Yield the answer of each image in order, or its error; `progress` shows a bar.

        At most `concurrency` images are read and in flight. An error that every image would have,
        such as an unknown model, is raised.
        """

        def ask(image: ImageSource) -> Answer | DiptychError:
            try:
                return self.predict(image, task, parameters, model=model, options=options, bgr=bgr)
            except DiptychError as error:
                if affects_every_image(error):
                    raise
                return error

        waiting: deque[Future[Answer | DiptychError]] = deque()
        threads = ThreadPoolExecutor(concurrency)
        try:
            with Bar(images, progress) as bar:
                for image in images:
                    waiting.append(threads.submit(ask, image))
                    if len(waiting) == concurrency:
                        yield bar.passed(waiting.popleft().result())
                while waiting:
                    yield bar.passed(waiting.popleft().result())
        finally:
            threads.shutdown(cancel_futures=True)

    def stream(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Generator[str | Answer, None, None]:
        """Yield the raw text of one model in pieces as it is generated, then the answer.

        Closing the generator cancels the request. Only a failure before the first piece is retried.
        """
        chosen = {"task": task, "model": model}
        prepared = self._prepare(image, bgr, chosen, parameters, options)
        first, events = self._call(PREDICT, prepared.request, self._start)
        with closing(events):
            for event in chain([first], events):
                yield restored(event, prepared.original)

    def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Comparison:
        """Return concurrent answers of several models, by default all that offer the task."""
        chosen = {"task": task, "models": None if models is None else tuple(models)}
        prepared = self._prepare(image, bgr, chosen, parameters, options)
        comparison = self._call(COMPARE, prepared.request, self._transport.send)
        return restored(comparison, prepared.original)

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


class AsyncClient(Caller[AsyncRestTransport | AsyncGrpcTransport]):
    """The same for asyncio.

    Created and used in one running event loop; calls may run concurrently.
    """

    _retrying = AsyncRetrying
    _transports = (AsyncRestTransport, AsyncGrpcTransport)

    async def predict(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Answer:
        """Return the answer of one model; by default of the first that offers the task."""
        chosen = {"task": task, "model": model}
        given = (image, bgr, chosen, parameters, options)
        prepared = await asyncio.to_thread(self._prepare, *given)
        answer = await self._call(PREDICT, prepared.request, self._transport.send)
        return restored(answer, prepared.original)

    async def predict_many(
        self,
        images: Iterable[ImageSource],
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool = False,
    ) -> AsyncGenerator[Answer | DiptychError, None]:
        """Yield the answer of each image in order, or its error; `progress` shows a bar."""

        async def ask(image: ImageSource) -> Answer | DiptychError:
            settings: Any = {"model": model, "options": options, "bgr": bgr}
            try:
                return await self.predict(image, task, parameters, **settings)
            except DiptychError as error:
                if affects_every_image(error):
                    raise
                return error

        waiting: deque[asyncio.Task[Answer | DiptychError]] = deque()
        try:
            with Bar(images, progress) as bar:
                for image in images:
                    waiting.append(asyncio.create_task(ask(image)))
                    if len(waiting) == concurrency:
                        yield bar.passed(await waiting.popleft())
                while waiting:
                    yield bar.passed(await waiting.popleft())
        finally:
            for task_of_image in waiting:
                task_of_image.cancel()

    async def stream(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> AsyncGenerator[str | Answer, None]:
        """Yield the raw text of one model in pieces as it is generated, then the answer.

        Closing the generator cancels the request. Only a failure before the first piece is retried.
        """
        chosen = {"task": task, "model": model}
        given = (image, bgr, chosen, parameters, options)
        prepared = await asyncio.to_thread(self._prepare, *given)
        first, events = await self._call(PREDICT, prepared.request, self._start)
        async with aclosing(events):
            yield restored(first, prepared.original)
            async for event in events:
                yield restored(event, prepared.original)

    async def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: Parameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Comparison:
        """Return concurrent answers of several models, by default all that offer the task."""
        chosen = {"task": task, "models": None if models is None else tuple(models)}
        given = (image, bgr, chosen, parameters, options)
        prepared = await asyncio.to_thread(self._prepare, *given)
        comparison = await self._call(COMPARE, prepared.request, self._transport.send)
        return restored(comparison, prepared.original)

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
