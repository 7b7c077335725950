"""The client of one model's runner; every failure becomes a `ServiceError`.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded, resized and sent
with a second call. A call whose connection breaks is repeated once: calls are idempotent.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from http import HTTPStatus

import aiohttp

from runners.artifacts.manifest import Manifest
from runners.telemetry.tracing import span
from runners.transport.messages import (
    AdapterStates,
    Failed,
    FinishReason,
    FoundFeatures,
    Outcomes,
    SequenceSpec,
    Written,
)
from service.errors import DeadlineExceeded, InternalError, InvalidRequest, NotReady, Overloaded, ServiceError
from service.images.decoding import LazyImage
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
    text: str  # of all sequences, one line each
    finish_reason: FinishReason  # `length` if any sequence was truncated
    num_prompt_tokens: int  # without image tokens
    num_generated_tokens: int  # with start and end tokens
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
        try:
            try:
                answered = await self._retried(call, replay)
            except FeaturesMissing:
                missing_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.pixels(self._manifest)
                preprocess_s = time.monotonic() - missing_s
                answered = await self._retried(replace(call, pixels=pixels), replay)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(error) from error
        return written_answers(answered, preprocess_s, time.monotonic() - start_s)

    async def is_ready(self) -> bool:
        return await self._channel.is_ready(_READY_TIMEOUT_S)

    async def adapters(self) -> AdapterStates | None:
        """Return the adapters of the runner; None if it does not answer, as while it starts."""
        return await self._channel.adapters(_READY_TIMEOUT_S)

    async def close(self) -> None:
        await self._channel.close()

    async def _retried(self, call: RunnerCall, replay: StreamReplay | None) -> Outcomes:
        is_repeated = False
        while True:
            try:
                return await (self._channel.write(call) if replay is None else self._stream(call, replay))
            except (*_BROKEN_CONNECTION, aiohttp.ClientResponseError) as error:
                if is_repeated or (isinstance(error, aiohttp.ClientResponseError) and error.status not in _UNREACHED):
                    raise
                logger.warning("repeating the call to the runner of %s after %r", self._model_id, error)
            is_repeated = True
            await asyncio.sleep(_RETRY_PAUSE_S)

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

    def _failure(self, error: aiohttp.ClientError | TimeoutError) -> ServiceError:
        """Return the error for a call that failed: by the status of the runner or of a proxy in front of it, if any."""
        status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
        if status in _UNREACHED:
            return NotReady(f"no runner of {self._model_id} with this gateway's build is ready; retry in a few seconds")
        is_late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
        if is_late or status == HTTPStatus.GATEWAY_TIMEOUT:
            return DeadlineExceeded(f"the runner of {self._model_id} did not answer before the deadline")
        if status is not None:
            return InternalError(f"the runner of {self._model_id} answered with status {status}; its log has the cause")
        logger.warning("the runner of %s is unreachable: %r", self._model_id, error)
        return NotReady(f"the runner of {self._model_id} is starting or restarting; retry in a few seconds")


def written_answers(answered: Outcomes, preprocess_s: float, elapsed_s: float) -> WrittenAnswers:
    """Return the sequences of a call that took `elapsed_s`; raise the error of the first that failed."""
    sequences: list[Written] = []
    for outcome in answered.outcomes:
        if isinstance(outcome, Failed):
            raise _error_of(outcome)
        sequences.append(outcome)
    # The stages of the slowest sequence: all of them run at the same time.
    _, prefill_s, decode_s = max(((s.queue_s, s.prefill_s, s.decode_s) for s in sequences), key=sum)
    known_s = preprocess_s + answered.features.encode_s + answered.features.queue_s + prefill_s + decode_s
    return WrittenAnswers(
        sequences=tuple(sequences),
        text="\n".join(sequence.text for sequence in sequences),
        finish_reason="length" if any(s.finish_reason == "length" for s in sequences) else "stop",
        num_prompt_tokens=sum(sequence.num_prompt_tokens for sequence in sequences),
        num_generated_tokens=sum(sequence.num_generated_tokens for sequence in sequences),
        features=answered.features,
        preprocess_s=preprocess_s,
        queue_s=max(0.0, elapsed_s - known_s),
        prefill_s=prefill_s,
        decode_s=decode_s,
    )


def _error_of(failed: Failed) -> ServiceError:
    match failed.code:
        case "sequence_too_long":
            return InvalidRequest(failed.message, "max_new_tokens" if "max_new_tokens" in failed.message else None)
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "unknown_adapter":
            return NotReady(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)
