"""What every interface calls: predict with one model, compare several; counted, timed, logged.

It knows fields, images and models, and no HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from runners.telemetry.tracing import past_span
from service.admission.drain_gate import Entrance
from service.admission.fair_queue import Demand, Turns
from service.admission.fair_share import FairShares
from service.admission.quotas import ANYONE, Caller
from service.admission.throughput import DrainRate
from service.errors import InternalError, InvalidRequest, Overloaded, ServiceError, UnsupportedImage
from service.images.fetching import ImageFetcher
from service.images.lazy_image import LazyImage, opened
from service.images.url_rules import GivenImage
from service.inference.cost import cost_tokens
from service.inference.prediction import Answer, PredictContext, predict, task_prompts
from service.inference.recording import record_answer, record_error
from service.inference.request_fields import CompareFields, PredictFields, TaskRequest, parse_fields
from service.inference.served_models import ServedModel, ServedModels
from service.runner_client.client import RunnerClient
from service.runner_client.stream_replay import TextListener
from service.telemetry import logs
from service.telemetry.tracing import answer_span, note_status

logger = logging.getLogger(__name__)

# The fields of a request; or a function of the image's size (width, height) for an interface that gives shares of it.
Fields = Mapping[str, object] | Callable[[tuple[int, int]], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request brings beside its fields."""

    request_id: str
    api: str  # label of the interface in metrics
    deadline_s: float  # on the clock of time.monotonic()
    caller: Caller = ANYONE

    @property
    def client(self) -> str:
        """Whose fair share it takes."""
        return self.caller.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several models answered, in catalog order; an error stands where a model gave no answer."""

    request: TaskRequest
    image_size_wh: tuple[int, int]
    answers: tuple[tuple[ServedModel, Answer | ServiceError], ...]


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """How much is taken on."""

    max_image_pixels: int
    max_pending: int  # requests at work or waiting
    max_running: int  # of them, at the runner of one model
    max_waiting_tokens: int  # of those that wait for one model


class Core:
    """The service without its interfaces. Without a fetcher it reads no URLs."""

    def __init__(
        self,
        models: ServedModels,
        runners: Mapping[str, RunnerClient],
        limits: CoreLimits,
        fetcher: ImageFetcher | None = None,
    ) -> None:
        self.models = models
        self.entrance = Entrance()
        self._runners = runners
        self._max_image_pixels = limits.max_image_pixels
        self._turns = {model.id: Turns(model.id, limits.max_running, limits.max_waiting_tokens) for model in models}
        self._fetcher = fetcher
        self._pending = FairShares(limits.max_pending)
        self._drain_rate = DrainRate()

    def check_room(self, client: str) -> None:
        """Raise `Overloaded` if a client has as many requests here as it may: before its body is read."""
        excess = self._pending.excess(client, 1)
        if excess > 0:
            message = f"{self._pending.of(client):.0f} requests are at work, the most that are allowed now"
            raise Overloaded(f"{message}; try again later", self._drain_rate.seconds_for(excess))

    async def is_ready(self, model: ServedModel) -> bool:
        """Return True if the runner of a model answers."""
        return await self._runners[model.id].is_ready()

    async def predict(
        self, image: GivenImage, fields: Fields, context: RequestContext, on_text: TextListener | None = None
    ) -> Answer:
        """Answer with one model; raise an error of the service's tree. `on_text` receives the text as it is written."""
        asked = None if callable(fields) else self._asked(fields)
        async with self._admitted(image, context) as opened_image:
            model, request = asked or self._asked(_at_size(fields, opened_image.header.size_wh))
            return await self._answer(model, request, opened_image, context, on_text)

    async def compare(self, image: GivenImage, fields: Mapping[str, object], context: RequestContext) -> Comparison:
        """Answer with several models at the same time; raise only what is wrong for all of them."""
        common, request = parse_fields(CompareFields, fields)
        models = self._compared(common.models, request)
        async with self._admitted(image, context) as opened_image:
            outcomes = await asyncio.gather(*(self._outcome(each, request, opened_image, context) for each in models))
        first, *others = outcomes
        is_refused = all(isinstance(each, Overloaded) for each in outcomes)
        for outcome in others if is_refused else outcomes:
            if isinstance(outcome, ServiceError):
                record_error(outcome, context.api, context.request_id)
        if is_refused and isinstance(first, Overloaded):
            raise first
        return Comparison(request, opened_image.header.size_wh, tuple(zip(models, outcomes, strict=True)))

    def _asked(self, fields: Mapping[str, object]) -> tuple[ServedModel, TaskRequest]:
        common, request = parse_fields(PredictFields, fields)
        if common.model is None:
            return self.models.offering(request.task.id)[0], request
        return self.models.get(common.model), request

    def _compared(self, model_ids: list[str] | None, request: TaskRequest) -> tuple[ServedModel, ...]:
        """Return the models of a comparison in catalog order."""
        if model_ids is None:
            return self.models.offering(request.task.id)
        asked = {self.models.get(model_id, "models").id for model_id in model_ids}
        return tuple(model for model in self.models if model.id in asked)

    async def _outcome(
        self, model: ServedModel, request: TaskRequest, image: LazyImage, context: RequestContext
    ) -> Answer | ServiceError:
        """Return the model's answer or its error; raise what is wrong with the image."""
        try:
            return await self._answer(model, request, image, context)
        except UnsupportedImage:
            raise
        except ServiceError as error:
            return error

    async def _answer(
        self,
        model: ServedModel,
        request: TaskRequest,
        image: LazyImage,
        context: RequestContext,
        on_text: TextListener | None = None,
    ) -> Answer:
        """Return the model's answer, recorded; raise its error, which names model and task."""
        with answer_span(model.id, request.task.id, context.request_id):
            try:
                answer = await self._admit_and_predict(model, request, image, context, on_text)
            except UnsupportedImage:
                raise
            except Exception as error:  # a defect in one model's path must not take the others' answers with it
                failure = error if isinstance(error, ServiceError) else _defect(error, model.id, context.request_id)
                failure.model, failure.task = model.id, request.task.id
                note_status(failure.code)
                raise failure from error.__cause__ if failure is error else error
            record_answer(answer, context.api, context.request_id)
            return answer

    async def _admit_and_predict(
        self,
        model: ServedModel,
        request: TaskRequest,
        image: LazyImage,
        context: RequestContext,
        on_text: TextListener | None,
    ) -> Answer:
        prompts = task_prompts(model, request, image.header.size_wh)
        demand = Demand(context.client, cost_tokens(model, request, prompts), context.deadline_s)
        async with self._turns[model.id].turn(demand) as waited_s:
            past_span("admission", (now_s := time.monotonic()) - waited_s, now_s)
            frame = PredictContext(prompts, context.deadline_s, waited_s, on_text)
            return await predict(model, self._runners[model.id], request, image, frame)

    @asynccontextmanager
    async def _admitted(self, image: GivenImage, context: RequestContext) -> AsyncIterator[LazyImage]:
        """Hold a place for a request and open its image; raise `Overloaded`, or what is wrong with the image."""
        with self._place(context):
            async with opened(await self._bytes_of(image, context), self._max_image_pixels) as opened_image:
                context.caller.take_pixels(opened_image.header.num_pixels)
                yield opened_image

    @contextmanager
    def _place(self, context: RequestContext) -> Iterator[None]:
        """Hold one of the places for requests, of all and of the caller; raise `Overloaded` if none is free."""
        self.check_room(context.client)
        with context.caller.at_work():
            self._pending.add(context.client, 1)
            self._drain_rate.begin()
            try:
                yield
            finally:
                self._drain_rate.end(1)
                self._pending.remove(context.client, 1)

    async def _bytes_of(self, image: GivenImage, context: RequestContext) -> bytes:
        if isinstance(image, bytes):
            return image
        if self._fetcher is None:
            message = "image is a URL, and this service reads none; send a data: URL, base64 or a file"
            raise InvalidRequest(message, "image")
        return await self._fetcher.fetch(image, context.deadline_s)


def _at_size(fields: Fields, size_wh: tuple[int, int]) -> Mapping[str, object]:
    return fields(size_wh) if callable(fields) else fields


def _defect(error: Exception, model_id: str, request_id: str) -> ServiceError:
    """Log a defect; return the error that a client receives."""
    logger.error(
        "request %s: %s failed", request_id, model_id, exc_info=error, extra=logs.fields({"request_id": request_id})
    )
    return InternalError(f"{model_id} failed; the log has the cause under the request's id")
