"""The core that every interface calls: predict with one model, stream, or compare several models.

It knows fields, images and models, no HTTP and no gRPC.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar

from imaging.files import ImageLimits
from service.admission.fair_queue import ClientSlots, FairQueue
from service.admission.places import Place, Places, RequestContext
from service.admission.threads import STORING
from service.errors import InvalidRequest, NotReady, Overloaded, ServiceError, UnsupportedImage
from service.images.decoding import MAX_DECODED_IMAGES, ImageDecoder, LazyImage
from service.images.fetching import ImageFetcher
from service.images.handle_store import HandleStore, stored
from service.images.inputs import ImageHandle, ImageInput, ImageUrl
from service.inference import recording
from service.inference.models import ModelClients, ServedModel, ServedModels
from service.inference.prediction import Answer, OnPiece, Piece, QueuedModel, answer_about
from service.inference.request_fields import CompareFields, PredictFields, TaskRequest, parse_fields
from service.inference.served_models import max_slots
from service.settings import Settings

MAX_IMAGES = 32  # one request
# Estimated (image, prompt and answer), of the requests queued for one model and its adapters. It
# bounds the queue before the rate is known at which the model completes tokens.
MAX_WAITING_TOKENS = 200_000

PieceT = TypeVar("PieceT")
AnswerT = TypeVar("AnswerT")

# Fields of a request; or a function of the image's size (width, height), for an interface with
# relative coordinates.
Fields = Mapping[str, object] | Callable[[tuple[int, int]], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answer or the error of each compared model, in catalog order."""

    request: TaskRequest
    image_size_wh: tuple[int, int]
    answers: tuple[tuple[ServedModel, Answer | ServiceError], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """Limits on one image, and on all that a core does at a time."""

    max_image_pixels: int
    max_pending_requests: int  # in flight or queued
    max_running_requests: int  # of one model and its adapters; their images wait in the runner
    max_request_bytes: int  # bodies, images by URL, and what is parsed of them
    max_decoded_images: int = MAX_DECODED_IMAGES
    max_waiting_tokens: int = MAX_WAITING_TOKENS

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            max_image_pixels=settings.max_image_pixels,
            max_pending_requests=settings.max_pending_requests,
            max_running_requests=settings.max_running_requests or max_slots(settings) * 3 // 2,
            max_request_bytes=settings.max_request_bytes,
        )


class Core:
    """The service without its interfaces; without allowed hosts it refuses image URLs."""

    def __init__(
        self,
        models: ServedModels,
        clients: ModelClients,
        limits: CoreLimits,
        fetcher: ImageFetcher | None = None,
        handles: HandleStore | None = None,
    ) -> None:
        self.models = models
        self.clients = clients
        self.limits = limits
        self.handles = handles
        self.places = Places(limits.max_pending_requests, limits.max_request_bytes)
        # An answer in a slot waits for no other: requests of many answers do not block each other
        num_slots = limits.max_pending_requests
        self._answer_slots = ClientSlots(num_slots, max(1, num_slots - 1))
        image_limits = ImageLimits(limits.max_image_pixels)
        self._decoder = ImageDecoder(image_limits, limits.max_decoded_images)
        self._queues: dict[str, FairQueue] = {}
        for backend_id in clients:
            self._queues[backend_id] = FairQueue(
                backend_id, limits.max_running_requests, limits.max_waiting_tokens
            )
        self.fetcher = fetcher

    @asynccontextmanager
    async def answer_slot(self, context: RequestContext) -> AsyncIterator[RequestContext]:
        """Wait for a slot for one of the answers of a request, which has a place."""
        async with self._answer_slots.slot(context.quota.name):
            yield replace(context, place=Place(), needs_place=False)

    async def is_ready(self, model: ServedModel) -> bool:
        return await model.is_ready(self.clients)

    async def check_ready(self, models: Sequence[ServedModel]) -> None:
        for model in models:
            if not await self.is_ready(model):
                problem = f"{model.id} is starting or unavailable"
                raise NotReady(f"{problem}; try again in a few seconds")

    async def predict(
        self,
        image: ImageInput,
        fields: Fields,
        context: RequestContext,
        on_piece: OnPiece | None = None,
    ) -> Answer:
        """Answer with one model; `on_piece` receives text as written. Raise `ServiceError`."""
        parsed = None if callable(fields) else self._parse(fields)
        async with self.opened(image, context) as opened_image:
            if callable(fields):
                parsed = self._parse(fields(opened_image.header.size_wh))
            assert parsed is not None
            model, request = parsed
            return await self.answer(model, request, opened_image, context, on_piece)

    def stream(
        self, image: ImageInput, fields: Fields, context: RequestContext
    ) -> AsyncGenerator[Piece | Answer, None]:
        """Yield the text of `predict` as it is written, then the answer."""
        return self.streamed(lambda send: self.predict(image, fields, context, send), context)

    async def streamed(
        self,
        run: Callable[[Callable[[PieceT], None]], Coroutine[Any, Any, AnswerT]],
        context: RequestContext,
    ) -> AsyncGenerator[PieceT | AnswerT, None]:
        """Yield each piece that `run` sends, then what it returns; closing cancels the request."""
        pieces: asyncio.Queue[PieceT | None] = asyncio.Queue()
        running = asyncio.create_task(run(pieces.put_nowait))
        running.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield await running
        finally:
            running.cancel()  # once: a wait for its end would cancel it again with this task
            del running  # its exception has this frame: a cycle, which would keep the image
            # a task that is cancelled before it has begun does not
            self.places.leave(context)

    async def compare(
        self, image: ImageInput, fields: Mapping[str, object], context: RequestContext
    ) -> Comparison:
        """Answer with several models concurrently; raise only errors that concern all of them."""
        common, request = parse_fields(CompareFields, fields)
        models = self.models.compared(common.models, request.task.id)
        async with self.opened(image, context) as opened_image:
            size_wh = opened_image.header.size_wh
            answering = (self._outcome(model, request, opened_image, context) for model in models)
            outcomes = await asyncio.gather(*answering)
        refusals = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        is_refused = len(refusals) == len(outcomes)
        for outcome in outcomes[1:] if is_refused else outcomes:  # what is raised is recorded later
            if isinstance(outcome, ServiceError):
                recording.record_error(outcome, context.api, context.request_id)
        if is_refused:
            raise refusals[0]
        return Comparison(request, size_wh, tuple(zip(models, outcomes, strict=True)))

    def _parse(self, fields: Mapping[str, object]) -> tuple[ServedModel, TaskRequest]:
        common, request = parse_fields(PredictFields, fields)
        if common.model is None:
            return self.models.offering(request.task.id)[0], request
        return self.models.get(common.model), request

    async def _outcome(
        self, model: ServedModel, request: TaskRequest, image: LazyImage, context: RequestContext
    ) -> Answer | ServiceError:
        """Return the answer or its error; raise `UnsupportedImage`, which concerns all models."""
        try:
            return await self.answer(model, request, image, context)
        except UnsupportedImage:
            raise
        except ServiceError as error:
            return error

    async def answer(
        self,
        model: ServedModel,
        request: TaskRequest,
        image: LazyImage,
        context: RequestContext,
        on_piece: OnPiece | None = None,
    ) -> Answer:
        """Return the recorded answer of a model; raise its error, with model and task."""
        queued = QueuedModel(
            model=model,
            clients=self.clients,
            queue=self._queues[model.backend_id],
            quota=context.quota,
            deadline_s=context.deadline_s,
            max_in_flight=self.limits.max_running_requests,
            hold=partial(self.places.hold, context),
        )
        with recording.answer_span(model.id, request.task.id, context.request_id):
            try:
                answer = await answer_about(queued, request, image, on_piece)
            except UnsupportedImage:
                raise
            except Exception as error:  # a defect in one model's path must not fail the others
                failure = recording.as_service_error(error, context.request_id, model.id)
                failure.model = model.id
                failure.task = request.task.id
                recording.note_status(failure.code)
                raise failure from error.__cause__ if failure is error else error
            recording.record_answer(answer, context.api, context.request_id)
            return answer

    @asynccontextmanager
    async def opened(self, image: ImageInput, context: RequestContext) -> AsyncIterator[LazyImage]:
        """Count a request as pending and open its image; raise `Overloaded` or its error."""
        self.places.take(context)
        try:
            data = image if isinstance(image, bytes) else await self.fetched(image, context)
            opened_image = LazyImage(data, self._decoder, context.quota.name)
            await opened_image.open(context.deadline_s)
            context.quota.take_pixels(math.prod(opened_image.header.size_wh))
            try:
                yield opened_image
            finally:
                if opened_image.hold is not None:
                    await opened_image.aclose()
        finally:
            self.places.leave(context)

    async def fetched(self, image: ImageUrl | ImageHandle, context: RequestContext) -> bytes:
        if isinstance(image, ImageHandle):
            images = stored(self.handles)
            description = await STORING.run(images.describe, context.quota.owner, image)
            self.places.hold(context, description.bytes)
            return await STORING.run(images.read, context.quota.owner, image)
        if self.fetcher is None or not self.fetcher.allowed:
            message = "image URLs are disabled; send a data: URL, base64 or a file"
            raise InvalidRequest(message, "image")
        return await self.fetcher.fetch(image, context, partial(self.places.hold, context))
