"""The core that every interface calls: predict with one model, stream, or compare several.

It knows fields, images and models, no HTTP and no gRPC.
"""

import asyncio
import math
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from imaging.files import ImageLimits
from service.admission.fair_queue import FairQueue
from service.admission.load import DrainGate, FairShare, ThroughputEstimate
from service.admission.quotas import UNLIMITED, Quota
from service.admission.traffic_gaps import TrafficGaps
from service.errors import InvalidRequest, NotReady, Overloaded, ServiceError, UnsupportedImage
from service.images.decoding import ImageDecoder, LazyImage, in_thread
from service.images.fetching import ImageFetcher, Receiver
from service.images.handle_ids import ImageHandle
from service.images.handle_store import ImageStore, stored
from service.images.url_rules import ImageInput, ImageUrl
from service.inference.prediction import Answer, Asked, OnPiece, Piece, proved
from service.inference.recording import (
    answer_span,
    logged_defect,
    note_status,
    record_answer,
    record_error,
)
from service.inference.request_fields import CompareFields, PredictFields, TaskRequest, parse_fields
from service.inference.served_models import ServedModel, ServedModels
from service.inference.tiled_answers import TiledModel, TileLimits, answer_in_tiles
from service.runner_client.joined_calls import JoinedCalls
from service.runner_client.runner_client import RunnerClient
from service.telemetry.metrics import REQUEST_MEMORY_BYTES

# Fields of a request; or a function of the image's size (width, height), for an interface with
# relative coordinates.
Fields = Mapping[str, object] | Callable[[tuple[int, int]], Mapping[str, object]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # safe in logs and headers


@dataclass(slots=True)
class Place:
    """The place of a request among those that are pending, and the memory that belongs to it."""

    is_taken: bool = False
    num_bytes: int = 0  # its body, an image by URL, and values parsed from them
    lease: str = ""  # its key's lease in the store of the shared limits


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Everything about a request except its fields and image."""

    request_id: str
    api: str  # the interface, as in metrics
    deadline_s: float  # time.monotonic()
    quota: Quota = UNLIMITED  # names the client in the fair queue and shares
    place: Place = field(default_factory=Place)
    # False: it runs in the gaps of the others, or in a place that its caller has taken
    needs_place: bool = True


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answer or the error of each compared model, in catalog order."""

    request: TaskRequest
    image_size_wh: tuple[int, int]
    answers: tuple[tuple[ServedModel, Answer | ServiceError], ...]


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """Limits on images and on requests in flight."""

    images: ImageLimits
    max_decoded_images: int  # images held at a time
    max_pending: int  # requests, running or waiting
    max_running: int  # requests in flight at one runner
    max_waiting_tokens: int  # all requests queued for one runner
    max_bytes: int  # all requests in flight
    max_bytes_of_client: int
    max_steps: int = 16  # one analysis
    max_step_answers: int = 256  # one analysis
    max_tiles: int = 64  # one answer


class Core:
    """The service without its interfaces; without a fetcher it refuses image URLs."""

    def __init__(
        self,
        models: ServedModels,
        runners: Mapping[str, RunnerClient],
        limits: CoreLimits,
        fetcher: ImageFetcher | None = None,
        gaps: TrafficGaps | None = None,
        handles: ImageStore | None = None,
    ) -> None:
        """`runners`: by the id of their model, which its adapters share."""
        self.limits = limits
        self.handles = handles
        self.models = models
        self.drain_gate = DrainGate()
        self.runners = runners
        self._decoder = ImageDecoder(limits.images, limits.max_decoded_images)
        self._queues = {
            runner: FairQueue(runner, limits.max_running, limits.max_waiting_tokens)
            for runner in self.runners
        }
        self._fetcher = fetcher
        self._gaps = gaps
        self._pending = FairShare(limits.max_pending)
        self._held_bytes = FairShare(limits.max_bytes, limits.max_bytes_of_client)
        self._throughput = ThroughputEstimate()

    async def take_place(self, context: RequestContext) -> None:
        """Count a request for the service and for its key until `leave`.

        Raise `Overloaded` above a limit of either.

        An interface calls it before it reads a body.
        """
        if context.place.is_taken or not context.needs_place:
            return
        self._pending.take(
            context.quota.name, 1, "requests in flight or queued", self._throughput.seconds_for
        )
        try:
            context.place.lease = await context.quota.begin_request(
                context.deadline_s - time.monotonic()
            )
        except BaseException:
            self._pending.remove(context.quota.name, 1)
            raise
        self._throughput.begin()
        if self._gaps is not None:
            self._gaps.begin_online()
        context.place.is_taken = True

    def hold(self, context: RequestContext, num_bytes: int) -> None:
        """Count memory of a request until `leave`.

        Raise `Overloaded` above a limit of all or of the client.

        A reader calls it for each piece that it receives, and before it parses what it has read.
        """
        self._held_bytes.take(context.quota.name, num_bytes, "bytes of requests in memory")
        context.place.num_bytes += num_bytes
        REQUEST_MEMORY_BYTES.set(self._held_bytes.total)

    def keep(self, context: RequestContext, num_bytes: int) -> None:
        """Give back the memory of a request above `num_bytes`: it has dropped the rest."""
        excess = context.place.num_bytes - num_bytes
        if excess > 0:
            self._held_bytes.remove(context.quota.name, excess)
            context.place.num_bytes = num_bytes
            REQUEST_MEMORY_BYTES.set(self._held_bytes.total)

    async def leave(self, context: RequestContext) -> None:
        """Give back the place of a request and the memory that it holds, if any."""
        if context.place.num_bytes:
            self._held_bytes.remove(context.quota.name, context.place.num_bytes)
            context.place.num_bytes = 0
            REQUEST_MEMORY_BYTES.set(self._held_bytes.total)
        if context.place.is_taken:
            context.place.is_taken = False
            self._throughput.end(1)
            if self._gaps is not None:
                self._gaps.end_online()
            self._pending.remove(context.quota.name, 1)
            await context.quota.end_request(context.place.lease)

    @property
    def num_held_bytes(self) -> int:
        """Memory of all requests, bytes."""
        return int(self._held_bytes.total)

    async def is_ready(self, model: ServedModel) -> bool:
        """Return True if the runner of a model is ready."""
        return await self.runners[model.runner_id].is_ready()

    async def check_ready(self, models: Sequence[ServedModel]) -> None:
        """Raise `NotReady` unless the runner of every model is ready."""
        are_ready = await asyncio.gather(*map(self.is_ready, models))
        unready = [model.id for model, ready in zip(models, are_ready, strict=True) if not ready]
        if unready:
            names = ", ".join(unready)
            raise NotReady(f"{names} is starting or unavailable; try again in a few seconds")

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
            size_wh = opened_image.header.size_wh
            model, request = parsed or self._parse(fields(size_wh) if callable(fields) else fields)
            return await self.answer(model, request, opened_image, context, on_piece)

    async def stream(
        self, image: ImageInput, fields: Fields, context: RequestContext
    ) -> AsyncGenerator[Piece | Answer, None]:
        """Yield the text of `predict` piece by piece as it is written, then the answer.

        Raise the same errors.

        The pieces add up to the answer's raw text. Closing the generator cancels the request.
        """
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        answering = asyncio.create_task(self.predict(image, fields, context, pieces.put_nowait))
        answering.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield await answering
        finally:
            answering.cancel()
            await self.leave(context)  # a task that is cancelled before it has begun does not

    async def compare(
        self, image: ImageInput, fields: Mapping[str, object], context: RequestContext
    ) -> Comparison:
        """Answer with several models concurrently; raise only errors that concern all of them."""
        common, request = parse_fields(CompareFields, fields)
        models = self.models.compared(common.models, request.task.id)
        async with self.opened(image, context) as opened_image:
            outcomes = await asyncio.gather(
                *(self._outcome(each, request, opened_image, context) for each in models)
            )
        first, *others = outcomes
        is_refused = all(isinstance(each, Overloaded) for each in outcomes)
        for outcome in others if is_refused else outcomes:
            if isinstance(outcome, ServiceError):
                record_error(outcome, context.api, context.request_id)
        if is_refused and isinstance(first, Overloaded):
            raise first
        return Comparison(
            request, opened_image.header.size_wh, tuple(zip(models, outcomes, strict=True))
        )

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
        runner: RunnerClient | JoinedCalls | None = None,
    ) -> Answer:
        """Return the recorded answer of a model; raise its error, with model and task."""
        with answer_span(model.id, request.task.id, context.request_id):
            try:
                called = runner or self.runners[model.runner_id]
                queue = self._queues[model.runner_id]
                asked = Asked(model, called, queue, context.quota.name, context.deadline_s)
                if request.fields.tiles == "off":
                    answer = await asked.answer(request, image, on_piece)
                else:
                    limits = TileLimits(self.limits.max_tiles, self.limits.max_running)
                    tiled = TiledModel(asked, context.quota, limits, partial(self.hold, context))
                    answer = await answer_in_tiles(tiled, request, image, on_piece)
                if request.fields.min_precision is not None:
                    answer = proved(answer)
            except UnsupportedImage:
                raise
            except Exception as error:  # a defect in one model's path must not fail the others
                failure = (
                    error
                    if isinstance(error, ServiceError)
                    else logged_defect(error, context.request_id, model.id)
                )
                failure.model = model.id
                failure.task = request.task.id
                note_status(failure.code)
                raise failure from error.__cause__ if failure is error else error
            record_answer(answer, context.api, context.request_id)
            return answer

    @asynccontextmanager
    async def opened(self, image: ImageInput, context: RequestContext) -> AsyncIterator[LazyImage]:
        """Count a request as pending and open its image; raise `Overloaded` or its error."""
        await self.take_place(context)
        try:
            data = image if isinstance(image, bytes) else await self.fetched(image, context)
            opened_image = LazyImage(data, self._decoder, context.quota.name)
            async with aclosing(opened_image):
                await opened_image.open(context.deadline_s)
                await context.quota.take_pixels(math.prod(opened_image.header.size_wh))
                yield opened_image
        finally:
            await self.leave(context)

    async def fetched(self, image: ImageUrl | ImageHandle, context: RequestContext) -> bytes:
        """Return a stored file, or the one at a URL; raise the error of either."""
        if isinstance(image, ImageHandle):
            images = stored(self.handles)
            found = await in_thread(images.describe, context.quota.owner, image)
            self.hold(context, found.num_bytes)
            return await in_thread(images.read, context.quota.owner, image)
        if self._fetcher is None:
            problem = "image is a URL, and image URLs are disabled"
            raise InvalidRequest(f"{problem}; send a data: URL, base64 or a file", "image")
        receiver = Receiver(context.deadline_s, context.quota.name, partial(self.hold, context))
        return await self._fetcher.fetch(image, receiver)


def is_valid_request_id(text: str) -> bool:
    return _REQUEST_ID.fullmatch(text) is not None


def request_id_or_new(text: str | None) -> str:
    """Return the client's own request id if it is valid, else a new one."""
    return text if text and is_valid_request_id(text) else uuid.uuid4().hex
