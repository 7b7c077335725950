"""The client for asyncio, and the source of the one that blocks.

`python client/blocking_client.py` writes client.py from this file. A call is one for both: `Caller`
of caller.py retries it, a transport here sends each attempt.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from operator import length_hint
from typing import Any, ClassVar, Self, TypeVar

import grpc.aio
import httpx
from httpx_sse import EventSource
from tenacity import AsyncRetrying

from diptych_client.clients.caller import DEFAULT_CONCURRENCY, Caller, Options, Parameters
from diptych_client.errors import DiptychError, ImageExpired, NotFound, affects_every_image
from diptych_client.image_sources import ImageSource, encoded_image, restored, sent_image
from diptych_client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    Request,
    Step,
    StoredImage,
    TaskId,
)
from diptych_client.results import Analysis, Answer, Comparison, Model, Task
from diptych_client.transports import messages
from diptych_client.transports.grpc_transports import (
    GrpcChannel,
    event_from_message,
    grpc_result,
    status_errors,
)
from diptych_client.transports.messages import Call, Operation

ResultT = TypeVar("ResultT")
SentT = TypeVar("SentT")
AsyncEvents = AsyncGenerator[str | Answer, None]


class AsyncRestTransport:
    """REST: a pool of connections."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=messages.key_headers(api_key))

    async def send(self, call: Call[ResultT]) -> ResultT:
        with messages.request_errors(call):
            response = await self._http.send(messages.http_request(self._http, call))
        return messages.http_result(response, call)

    async def stream(self, call: Call[Answer]) -> AsyncGenerator[str | Answer, None]:
        request = messages.http_request(self._http, call, is_stream=True)
        event = None
        with messages.request_errors(call):
            response = await self._http.send(request, stream=True)
            async with aclosing(response):
                if not response.is_success:
                    await response.aread()
                    messages.check_status(response, call)
                events: Any = EventSource(response).aiter_sse()
                async with aclosing(events):
                    async for sse in events:
                        event = messages.parsed(messages.event_from_sse, sse, call)
                        yield event
        messages.check_stream_is_complete(event, call)

    async def close(self) -> None:
        await self._http.aclose()


class AsyncGrpcTransport(GrpcChannel):
    """A channel of gRPC."""

    _grpc: ClassVar = grpc.aio

    async def send(self, call: Call[ResultT]) -> ResultT:
        with status_errors(call):
            return grpc_result(await self.start(call), call)

    async def stream(self, call: Call[Answer]) -> AsyncGenerator[str | Answer, None]:
        event = None
        with status_errors(call):
            replies = self.start(call, is_stream=True)
            try:
                async for reply in replies:
                    event = messages.parsed(event_from_message, reply, call)
                    yield event
            finally:
                replies.cancel()
        messages.check_stream_is_complete(event, call)

    async def close(self) -> None:
        await self._channel.close()


class AsyncClient(Caller[AsyncRestTransport | AsyncGrpcTransport]):
    """A connection to a service: `http(s)://` for REST, `grpc://` or `grpcs://` for gRPC.

    `timeout_s` is the deadline of a call, retries included; the service receives the remaining
    time. `max_pixels`: larger images are sent smaller, and their answers scaled back. Every method
    raises `DiptychError`. Created and used in one running event loop; calls may be concurrent.
    """

    _retrying = AsyncRetrying
    _transports = (AsyncRestTransport, AsyncGrpcTransport)

    async def predict(
        self,
        image: ImageSource,
        task: TaskId,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Answer:
        """Return the answer of one model.

        `image`: a path, perhaps with a page as `scan.pdf#page=2`, the bytes of a file, an open
        file, a PIL image, an array, a tensor, or an `http(s)` URL of a host that the service reads.
        `task`: its id, such as `ocr`; `tasks()` lists them.
        `parameters`: those of the task, as `TaskParameters` or a dict: `{"labels": ["dog"]}`.
        `model`: its id; by default the first that offers the task.
        `options`: of generation and answer, as `AnswerOptions` or a dict: `{"min_score": 0.5}`.
        `bgr`: the channels of an array are blue, green, red, as in OpenCV.
        """
        fields = {"task": task, "model": model}
        request = await asyncio.to_thread(self._prepare, image, bgr, fields, parameters, options)
        answer = await self._ask(messages.PREDICT, request, self._transport.send)
        return restored(answer, request.original)

    async def predict_many(
        self,
        images: Iterable[ImageSource],
        task: TaskId,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
        concurrency: int = DEFAULT_CONCURRENCY,
        progress: bool = False,
    ) -> AsyncGenerator[Answer | DiptychError, None]:
        """Yield the answer of each image in order, or its error; `progress` shows a bar.

        The other arguments are those of `predict`.
        At most `concurrency` images are read and in flight. An error that every image would have,
        such as an unknown model, is raised.
        """
        # imported when needed: it takes longer than the rest of the client
        from rich.console import Console
        from rich.progress import Progress

        async def ask(image: ImageSource) -> Answer | DiptychError:
            try:
                return await self.predict(
                    image, task, parameters, model=model, options=options, bgr=bgr
                )
            except DiptychError as error:
                if affects_every_image(error):
                    raise
                return error

        waiting: deque[asyncio.Task[Answer | DiptychError]] = deque()
        try:
            with Progress(console=Console(stderr=True), disable=not progress) as bar:
                answered = bar.add_task("", total=length_hint(images) or None)
                for image in images:
                    waiting.append(asyncio.create_task(ask(image)))
                    if len(waiting) == concurrency:
                        yield await waiting.popleft()
                        bar.advance(answered)
                while waiting:
                    yield await waiting.popleft()
                    bar.advance(answered)
        finally:
            for task_in_flight in waiting:
                task_in_flight.cancel()

    async def stream(
        self,
        image: ImageSource,
        task: TaskId,
        parameters: Parameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> AsyncGenerator[str | Answer, None]:
        """Yield the raw text of one model in pieces as it is generated, then the answer.

        Closing the generator cancels the request. Only a failure before the first piece is retried.
        """
        fields = {"task": task, "model": model}
        request = await asyncio.to_thread(self._prepare, image, bgr, fields, parameters, options)
        first, events = await self._ask(messages.PREDICT, request, self._start)
        async with aclosing(events):
            yield restored(first, request.original)
            async for event in events:
                yield restored(event, request.original)

    async def compare(
        self,
        image: ImageSource,
        task: TaskId,
        parameters: Parameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: Options = DEFAULT_OPTIONS,
        bgr: bool = False,
    ) -> Comparison:
        """Return concurrent answers of several models, by default all that offer the task."""
        fields = {"task": task, "models": None if models is None else tuple(models)}
        request = await asyncio.to_thread(self._prepare, image, bgr, fields, parameters, options)
        comparison = await self._ask(messages.COMPARE, request, self._transport.send)
        return restored(comparison, request.original)

    async def analyze(self, image: ImageSource, steps: Sequence[Step]) -> Analysis:
        """Answer many questions about one image; a step may be asked about each box of another.

        The fields of a step are those of `POST /v1/analyze`.
        """
        sent = await asyncio.to_thread(sent_image, image)
        stored = image if isinstance(image, StoredImage) else None
        request = Request(sent, {"steps": tuple(steps)}, stored)
        return await self._ask(messages.ANALYZE, request, self._transport.send)

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
                    await self._call(messages.removal(stored.id), Request(), self._transport.send)

    async def models(self) -> tuple[Model, ...]:
        return await self._call(messages.MODELS, Request(), self._transport.send)

    async def tasks(self) -> tuple[Task, ...]:
        """Return all tasks, each with its parameters' JSON Schema and its models."""
        return await self._call(messages.TASKS, Request(), self._transport.send)

    async def close(self) -> None:
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
        """Do as `_call`; send the file of an image that is not stored, and store it again."""
        try:
            return await self._call(operation, request, send)
        except (ImageExpired, NotFound):
            if request.stored is None or isinstance(request.image, bytes):
                raise
            # perhaps at another gateway than the one that answers
            await self._store(request.stored)
        return await self._call(operation, replace(request, image=request.stored.data), send)

    async def _store(self, image: StoredImage) -> None:
        image.id = None
        if isinstance(self._transport, AsyncRestTransport):
            with suppress(NotFound):  # the service stores none
                image.id = await self._call(
                    messages.STORE, Request(image.data), self._transport.send
                )

    async def _start(self, call: Call[Answer]) -> tuple[str | Answer, AsyncEvents]:
        events = self._transport.stream(call)
        return await anext(events), events
