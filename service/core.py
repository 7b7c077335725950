"""What every interface calls: predict with one model, compare several; counted, timed, logged.

It knows fields, images and models, and no HTTP.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from service.errors import InternalError, Overloaded, ServiceError
from service.images import RgbImage, decode_image
from service.prediction import Answer, predict
from service.recording import record_answer, record_error
from service.requests import CompareFields, PredictFields, TaskRequest, parse_fields
from service.runner_client import RunnerClient
from service.served_models import ServedModel, ServedModels
from service.text_in_order import TextListener
from service.threads import in_thread

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request brings beside its fields."""

    request_id: str
    api: str  # label of the interface in metrics
    deadline_s: float  # on the clock of time.monotonic()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several models answered, in catalog order; an error stands where a model gave no answer."""

    request: TaskRequest
    image_size_wh: tuple[int, int]
    answers: tuple[tuple[ServedModel, Answer | ServiceError], ...]


class Core:
    """The service without its interfaces."""

    def __init__(
        self, models: ServedModels, runners: Mapping[str, RunnerClient], max_image_pixels: int, max_pending: int
    ) -> None:
        self.models = models
        self._runners = runners
        self._max_image_pixels = max_image_pixels
        self._max_pending = max_pending
        self._num_pending = 0

    async def predict(
        self,
        image: bytes,
        fields: Mapping[str, object],
        context: RequestContext,
        on_text: TextListener | None = None,
    ) -> Answer:
        """Answer with one model; raise an error of the service's tree. `on_text` hears the text as it is written."""
        common, request = parse_fields(PredictFields, fields)
        model = self.models.get(common.model) if common.model is not None else self.models.offering(request.task.id)[0]
        with self._admitted():
            rgb = await in_thread(decode_image, image, self._max_image_pixels)
            outcome = await self._answer(model, request, rgb, context, on_text)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def compare(self, image: bytes, fields: Mapping[str, object], context: RequestContext) -> Comparison:
        """Answer with several models at the same time; raise only what is wrong for all of them."""
        common, request = parse_fields(CompareFields, fields)
        models = self._compared(common.models, request)
        with self._admitted():
            rgb = await in_thread(decode_image, image, self._max_image_pixels)
            outcomes = await asyncio.gather(*(self._answer(model, request, rgb, context) for model in models))
        return Comparison(request, rgb.size_wh, tuple(zip(models, outcomes, strict=True)))

    async def image_size_wh(self, image: bytes) -> tuple[int, int]:
        """Return the size of an upright image: the frame of what is asked and answered about it."""
        return (await in_thread(decode_image, image, self._max_image_pixels)).size_wh

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
        image: RgbImage,
        context: RequestContext,
        on_text: TextListener | None = None,
    ) -> Answer | ServiceError:
        """Return the model's answer, or the error it ended with; count and log either."""
        try:
            answer = await predict(model, self._runners[model.id], request, image, context.deadline_s, on_text)
        except ServiceError as error:
            record_error(error, context.api, context.request_id, model.id, request.task.id)
            return error
        except Exception as error:  # a defect in one model's path must not take the others' answers with it
            logger.exception("request %s: %s failed at %s", context.request_id, model.id, request.task.id)
            failure = InternalError(f"{model.id} failed; the log tells more under the request's id")
            failure.__cause__ = error
            record_error(failure, context.api, context.request_id, model.id, request.task.id)
            return failure
        record_answer(answer, context.api, context.request_id)
        return answer

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Hold one of the places for requests at work; raise `Overloaded` if none is free."""
        if self._num_pending >= self._max_pending:
            raise Overloaded(f"{self._num_pending} requests are at work, the most that are allowed; try again later")
        self._num_pending += 1
        try:
            yield
        finally:
            self._num_pending -= 1
