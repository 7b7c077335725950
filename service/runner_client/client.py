"""What the gateway asks of one model's runner, with every failure turned into an error of the service's tree.

A call goes without pixels first. Only where the runner has no features of the image, its pixels are decoded, resized
and sent with a second call. A call whose connection breaks is repeated, once: an answer depends on nothing but its
request.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus

import aiohttp

from runners.artifacts.manifest import Manifest
from runners.telemetry.tracing import span
from runners.transport.messages import Failed, FoundFeatures, Outcome, Outcomes, SequenceSpec, Written
from runners.transport.pixels import Pixels
from service.errors import DeadlineExceeded, InternalError, InvalidRequest, NotReady, Overloaded, ServiceError
from service.images.lazy_image import LazyImage
from service.runner_client.channel import FeaturesMissing, RunnerCall, RunnerChannel
from service.runner_client.stream_replay import TextInOrder, TextListener, ToldOtherwise

logger = logging.getLogger(__name__)

# What a call ends with whose connection was idle and just closed, or could not be made, or whose runner died.
_BROKEN = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
    aiohttp.ConnectionTimeoutError,
)
# A proxy answers these where a runner died with a call that the proxy could not replay, or has no runner for a moment.
_UNREACHED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_PAUSE_S = 0.1  # until other connections that broke with one are known to be so
_READY_TIMEOUT_S = 1


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """The sequences of one task and the seconds of their stages."""

    sequences: tuple[Written, ...]
    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # waiting for slots, and transport
    prefill_s: float
    decode_s: float


class RunnerClient:
    """The runner of one model, behind one URL."""

    def __init__(self, manifest: Manifest, channel: RunnerChannel) -> None:
        self._manifest = manifest
        self._model_id = manifest.model_id
        self._channel = channel

    async def write(
        self, image: LazyImage, specs: Sequence[SequenceSpec], on_text: TextListener | None = None
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `on_text` receives their text as it is written. Cancelled, it ends them.
        """
        start_s, preprocess_s = time.monotonic(), 0.0
        text = None if on_text is None else TextInOrder(len(specs), on_text)
        call = RunnerCall(image.key(self._manifest), specs)
        with self._errors():
            try:
                answered = await self._retried(call, text)
            except FeaturesMissing:
                pixels, preprocess_s = await self._preprocessed(image)
                answered = await self._retried(replace(call, pixels=pixels), text)
        return _written_answers(answered, preprocess_s, time.monotonic() - start_s)

    async def is_ready(self) -> bool:
        """Return True if the runner answers that it is ready."""
        return await self._channel.is_ready(_READY_TIMEOUT_S)

    async def close(self) -> None:
        """Close idle connections."""
        await self._channel.close()

    async def _preprocessed(self, image: LazyImage) -> tuple[Pixels, float]:
        start_s = time.monotonic()
        with span("preprocess"):
            pixels = await image.pixels(self._manifest)
        return pixels, time.monotonic() - start_s

    async def _retried(self, call: RunnerCall, text: TextInOrder | None) -> Outcomes:
        try:
            return await self._answer(call, text)
        except (*_BROKEN, aiohttp.ClientResponseError) as error:
            if isinstance(error, aiohttp.ClientResponseError) and error.status not in _UNREACHED:
                raise
            logger.warning("repeating a call to the runner of %s: %r", self._model_id, error)
            await asyncio.sleep(_RETRY_PAUSE_S)
            return await self._answer(call, text)

    async def _answer(self, call: RunnerCall, text: TextInOrder | None) -> Outcomes:
        return await (self._channel.write(call) if text is None else self._stream(call, text))

    async def _stream(self, call: RunnerCall, text: TextInOrder) -> Outcomes:
        """Write with text as it comes. A repeated stream continues after the text already sent, if it is the same."""
        text.begin()
        features = FoundFeatures(outcome="hit")
        try:
            async with aclosing(self._channel.stream(call)) as events:
                async for event in events:
                    if isinstance(event, FoundFeatures):
                        features = event
                    else:
                        text.hear(event)
        except ToldOtherwise as error:  # it was drawn at random
            message = f"the runner of {self._model_id} restarted; a sampled answer cannot be resumed"
            raise NotReady(message) from error
        if len(text.outcomes) < len(call.sequences):
            raise InternalError(f"the runner of {self._model_id} ended a stream too early")
        return Outcomes(features=features, outcomes=text.outcomes)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise an error of the service's tree for what a call to the runner raises."""
        try:
            yield
        except aiohttp.ClientResponseError as error:
            raise self._refusal(error.status) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise self._unreachable(error) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"the runner of {self._model_id} did not answer before the deadline") from error
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: aiohttp.ClientError) -> NotReady:
        logger.warning("the runner of %s is unreachable: %r", self._model_id, error)
        return NotReady(f"the runner of {self._model_id} is starting or was restarted; try again in a few seconds")

    def _refusal(self, status: int) -> ServiceError:
        """Return the error of a call that was answered with an error status: of the runner, or of a proxy before it."""
        if status in _UNREACHED:
            return NotReady(f"no runner of {self._model_id} with the build of this gateway is ready; try again later")
        if status == HTTPStatus.GATEWAY_TIMEOUT:
            return DeadlineExceeded(f"the runner of {self._model_id} did not answer before the deadline")
        return InternalError(f"the runner of {self._model_id} failed")


def _written_answers(answered: Outcomes, preprocess_s: float, elapsed_s: float) -> WrittenAnswers:
    sequences = tuple(map(_written, answered.outcomes))
    slowest = max(sequences, key=lambda sequence: sequence.queue_s + sequence.prefill_s + sequence.decode_s)
    features = answered.features
    known_s = preprocess_s + features.encode_s + features.queue_s + slowest.prefill_s + slowest.decode_s
    return WrittenAnswers(
        sequences, features, preprocess_s, max(0.0, elapsed_s - known_s), slowest.prefill_s, slowest.decode_s
    )


def _written(outcome: Outcome) -> Written:
    if isinstance(outcome, Failed):
        raise _error_of(outcome)
    return outcome


def _error_of(failed: Failed) -> ServiceError:
    match failed.code:
        case "sequence_too_long":
            return InvalidRequest(failed.message, "max_new_tokens" if "max_new_tokens" in failed.message else None)
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)
