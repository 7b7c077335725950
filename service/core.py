"""What every interface calls: predict with one model, compare several; counted, timed, logged.

It knows fields, images and models, and no HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from runners.tracing import past_span, span
from service import logs
from service.callers import ANYONE, Caller
from service.cost import cost_tokens
from service.drain_rate import DrainRate
from service.entrance import Entrance
from service.errors import InternalError, InvalidRequest, Overloaded, ServiceError, UnsupportedImage
from service.fair_shares import FairShares
from service.image_fetching import ImageFetcher
from service.image_urls import GivenImage
from service.images import decode_image
from service.picture import Picture, opened
from service.prediction import Answer, Circumstances, predict, task_prompts
from service.recording import record_answer, record_error
from service.requests import CompareFields, PredictFields, TaskRequest, parse_fields
from service.runner_client import RunnerClient
from service.served_models import ServedModel, ServedModels
from service.text_in_order import TextListener
from service.threads import in_thread
from service.tracing import answer_span
from service.turns import Demand, Turns
from tasks.parameter_kinds import MAX_COORDINATE_PX

logger = logging.getLogger(__name__)

_ANY_SIZE_WH = (MAX_COORDINATE_PX, MAX_COORDINATE_PX)  # of an image that is not looked at yet


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
class MeasuredImage:
    """An encoded image and the size that it has upright."""

    data: bytes
    size_wh: tuple[int, int]


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
    max_running: int  # of them, at each decoder of a model
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
        self._max_running = limits.max_running
        self._turns = {
            model.id: Turns(model.id, partial(self._max_running_at, model.id), limits.max_waiting_tokens)
            for model in models
        }
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
        """Say whether both runners of a model answer."""
        return await self._runners[model.id].is_ready()

    async def predict(
        self,
        image: GivenImage,
        fields: Mapping[str, object],
        context: RequestContext,
        on_text: TextListener | None = None,
    ) -> Answer:
        """Answer with one model; raise an error of the service's tree. `on_text` hears the text as it is written."""
        common, request = parse_fields(PredictFields, fields)
        model = self.models.get(common.model) if common.model is not None else self.models.offering(request.task.id)[0]
        async with self._admitted(image, context) as picture:
            outcome = await self._answer(model, request, picture, context, on_text)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def compare(self, image: GivenImage, fields: Mapping[str, object], context: RequestContext) -> Comparison:
        """Answer with several models at the same time; raise only what is wrong for all of them."""
        common, request = parse_fields(CompareFields, fields)
        models = self._compared(common.models, request)
        async with self._admitted(image, context) as picture:
            outcomes = await asyncio.gather(*(self._answer(model, request, picture, context) for model in models))
            if isinstance(outcomes[0], Overloaded) and all(isinstance(each, Overloaded) for each in outcomes):
                raise outcomes[0]
            size_wh = (await picture.rgb()).size_wh
        return Comparison(request, size_wh, tuple(zip(models, outcomes, strict=True)))

    async def measure(self, image: GivenImage, context: RequestContext) -> MeasuredImage:
        """Return an image with its upright size: the frame of what is asked and answered about it."""
        with self._place(context):
            data = await self._bytes_of(image, context)
            return MeasuredImage(data, (await in_thread(decode_image, data, self._max_image_pixels)).size_wh)

    def _max_running_at(self, model_id: str) -> int:
        return self._max_running * self._runners[model_id].num_decoders

    def _compared(self, model_ids: list[str] | None, request: TaskRequest) -> tuple[ServedModel, ...]:
        """Return the models of a comparison in catalog order."""
        if model_ids is None:
            return self.models.offering(request.task.id)
        asked = {self.models.get(model_id, "models").id for model_id in model_ids}
        return tuple(model for model in self.models if model.id in asked)

    async def _answer(
        self,
        model: ServedModel,
        request: TaskRequest,
        picture: Picture,
        context: RequestContext,
        on_text: TextListener | None = None,
    ) -> Answer | ServiceError:
        """Return the model's answer or its error, counted, logged and traced; raise what is wrong with the image."""
        with answer_span(model.id, request.task.id, context.request_id):
            try:
                answer = await self._in_turn(model, request, picture, context, on_text)
            except UnsupportedImage:
                raise
            except ServiceError as error:
                record_error(error, context.api, context.request_id, model.id, request.task.id)
                return error
            except Exception as error:  # a defect in one model's path must not take the others' answers with it
                told = logs.fields({"request_id": context.request_id})
                logger.exception(
                    "request %s: %s failed at %s", context.request_id, model.id, request.task.id, extra=told
                )
                failure = InternalError(f"{model.id} failed; the log tells more under the request's id")
                failure.__cause__ = error
                record_error(failure, context.api, context.request_id, model.id, request.task.id)
                return failure
            record_answer(answer, context.api, context.request_id)
            return answer

    async def _in_turn(
        self,
        model: ServedModel,
        request: TaskRequest,
        picture: Picture,
        context: RequestContext,
        on_text: TextListener | None,
    ) -> Answer:
        cost = cost_tokens(model, request, task_prompts(model, request, _ANY_SIZE_WH))
        demand = Demand(context.client, cost, context.deadline_s)
        async with self._turns[model.id].turn(demand) as waited_s:
            past_span("admission", (now_s := time.monotonic()) - waited_s, now_s)
            with span("open_image"):
                image = await picture.rgb()
            told = Circumstances(context.deadline_s, waited_s, on_text)
            return await predict(model, self._runners[model.id], request, image, told)

    @asynccontextmanager
    async def _admitted(self, image: GivenImage, context: RequestContext) -> AsyncIterator[Picture]:
        """Hold a place for a request and open its image; raise `Overloaded`, or what is wrong with the image."""
        with self._place(context):
            async with opened(await self._bytes_of(image, context), self._max_image_pixels) as picture:
                context.caller.take_pixels(picture.num_pixels)
                yield picture

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
