"""The client of one model's runner; every failure becomes a `ServiceError`.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded, resized and sent
with a second call. A call whose connection breaks is repeated once: calls are idempotent.
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
from service.runner_client.stream_replay import OnText, ReplayDiverged, StreamReplay

logger = logging.getLogger(__name__)

# Errors of a connection that was closed while idle, could not be made, or whose runner died.
_BROKEN_CONNECTION = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
    aiohttp.ConnectionTimeoutError,
)
# A proxy answers these where a runner died with a call that the proxy could not replay, or has no runner for a moment.
_UNREACHED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_PAUSE_S = 0.1  # until aiohttp has noticed other connections that broke at the same time
_READY_TIMEOUT_S = 1


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Written sequences of one request, and the seconds of each stage."""

    sequences: tuple[Written, ...]
    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # for slots, and transport
    prefill_s: float
    decode_s: float


class RunnerClient:
    """Calls to the runner of one model."""

    def __init__(self, manifest: Manifest, channel: RunnerChannel) -> None:
        self._manifest = manifest
        self._model_id = manifest.model_id
        self._channel = channel

    async def write(
        self, image: LazyImage, specs: Sequence[SequenceSpec], on_text: OnText | None = None
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `on_text` receives their text as it is written. Cancellation ends them in the runner.
        """
        start_s, preprocess_s = time.monotonic(), 0.0
        replay = None if on_text is None else StreamReplay(len(specs), on_text)
        call = RunnerCall(image.key(self._manifest), specs)
        with self._errors():
            try:
                answered = await self._retried(call, replay)
            except FeaturesMissing:
                pixels, preprocess_s = await self._preprocessed(image)
                answered = await self._retried(replace(call, pixels=pixels), replay)
        return _written_answers(answered, preprocess_s, time.monotonic() - start_s)

    async def is_ready(self) -> bool:
        return await self._channel.is_ready(_READY_TIMEOUT_S)

    async def close(self) -> None:
        await self._channel.close()

    async def _preprocessed(self, image: LazyImage) -> tuple[Pixels, float]:
        start_s = time.monotonic()
        with span("preprocess"):
            pixels = await image.pixels(self._manifest)
        return pixels, time.monotonic() - start_s

    async def _retried(self, call: RunnerCall, replay: StreamReplay | None) -> Outcomes:
        try:
            return await self._call(call, replay)
        except (*_BROKEN_CONNECTION, aiohttp.ClientResponseError) as error:
            if isinstance(error, aiohttp.ClientResponseError) and error.status not in _UNREACHED:
                raise
            logger.warning("repeating the call to the runner of %s after %r", self._model_id, error)
            await asyncio.sleep(_RETRY_PAUSE_S)
            return await self._call(call, replay)

    async def _call(self, call: RunnerCall, replay: StreamReplay | None) -> Outcomes:
        return await (self._channel.write(call) if replay is None else self._stream(call, replay))

    async def _stream(self, call: RunnerCall, replay: StreamReplay) -> Outcomes:
        """Send text as it arrives. A repeated stream continues after the text already sent, if that is the same."""
        replay.begin()
        features = FoundFeatures(outcome="hit")
        try:
            async with aclosing(self._channel.stream(call)) as events:
                async for event in events:
                    if isinstance(event, FoundFeatures):
                        features = event
                    else:
                        replay.receive(event)
        except ReplayDiverged as error:  # the answer was sampled
            message = f"the runner of {self._model_id} restarted; a sampled answer cannot be resumed; retry the request"
            raise NotReady(message) from error
        if len(replay.outcomes) < len(call.sequences):
            raise InternalError(f"the runner of {self._model_id} ended the stream before the answer was complete")
        return Outcomes(features=features, outcomes=replay.outcomes)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the errors of a call into `ServiceError`s."""
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
        return NotReady(f"the runner of {self._model_id} is starting or restarting; retry in a few seconds")

    def _refusal(self, status: int) -> ServiceError:
        """Return the error for a status of the runner, or of a proxy in front of it."""
        if status in _UNREACHED:
            return NotReady(f"no runner of {self._model_id} with this gateway's build is ready; retry in a few seconds")
        if status == HTTPStatus.GATEWAY_TIMEOUT:
            return DeadlineExceeded(f"the runner of {self._model_id} did not answer before the deadline")
        return InternalError(f"the runner of {self._model_id} answered with status {status}; its log has the cause")


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
