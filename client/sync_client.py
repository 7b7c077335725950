"""The client for code without asyncio; `client/async_client.py` is the same with it."""

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Self, TypeVar

from client.errors import DiptychError
from client.operations import COMPARE, MODELS, PREDICT, TASKS, Attempt, Operation, ResultT
from client.requests import (
    DEFAULT_OPTIONS,
    NO_PARAMETERS,
    AnswerOptions,
    ImageSource,
    Request,
    TaskParameters,
    compare_request,
    predict_request,
)
from client.results import Answer, Comparison, Model, Task
from client.retries import CallTime
from client.transports import transport_to

ValueT = TypeVar("ValueT")


class Client:
    """A connection to a service: `http://` or `https://` for REST, `grpc://` or `grpcs://` for gRPC.

    A call ends `timeout_s` seconds after its start, retries included: the service is told what is left. Every method
    raises `DiptychError`. One client may be used by several threads.
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
        """Ask one model, the first that offers the task where none is named."""
        return self._call(PREDICT, predict_request(image, task, model, parameters, options))

    def stream(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        model: str | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Generator[str | Answer, None, None]:
        """Ask one model, and yield the pieces of its raw text as they are written, and at last the answer.

        Closed before, it ends the answer. It is tried again only until its first piece.
        """
        request = predict_request(image, task, model, parameters, options)
        started = self._tried(PREDICT, request, self._start)
        with closing(started.others) as others:
            yield started.first
            yield from others

    def compare(
        self,
        image: ImageSource,
        task: str,
        parameters: TaskParameters = NO_PARAMETERS,
        *,
        models: Sequence[str] | None = None,
        options: AnswerOptions = DEFAULT_OPTIONS,
    ) -> Comparison:
        """Ask several models at the same time, all that offer the task where none is named."""
        return self._call(COMPARE, compare_request(image, task, models, parameters, options))

    def models(self) -> tuple[Model, ...]:
        """List the served models."""
        return self._call(MODELS, Request())

    def tasks(self) -> tuple[Task, ...]:
        """List every task with the schema of its parameters and the models that offer it."""
        return self._call(TASKS, Request())

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, operation: Operation[ResultT], request: Request) -> ResultT:
        return self._tried(operation, request, self._transport.send)

    def _start(self, attempt: Attempt[Answer]) -> "_Started":
        events = self._transport.stream(attempt)
        return _Started(next(events), events)

    def _tried(
        self, operation: Operation[ResultT], request: Request, send: Callable[[Attempt[ResultT]], ValueT]
    ) -> ValueT:
        """Send until it succeeds or is not worth another try."""
        request_id, call = uuid.uuid4().hex, CallTime(self._timeout_s, self._max_retries)
        while True:
            try:
                return send(Attempt(operation, request, request_id, call.remaining_s()))
            except DiptychError as error:
                time.sleep(call.wait_after_s(error))


@dataclass(frozen=True, slots=True)
class _Started:
    """A stream that has begun."""

    first: str | Answer
    others: Generator[str | Answer, None, None]
