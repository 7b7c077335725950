"""The client of one model's runner, over a channel.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded,
resized and sent with a second call; those of a small image that this process has not sent before,
with the first. A call whose connection breaks is repeated once: calls are idempotent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial

from cachetools import LRUCache

from service.errors import InternalError, NotReady
from service.images.decoding import LazyImage
from service.runner_client.failures import error_of_call, error_of_outcome
from service.runner_client.stream_replay import OnText, ReplayDiverged, StreamReplay
from wire.artifacts.manifest import Manifest
from wire.runner_channel import (
    ChannelError,
    FeaturesMissing,
    RunnerCall,
    RunnerChannel,
    RunnerUnavailable,
    RunnerUnreachable,
)
from wire.runner_messages import (
    AdapterStates,
    Failed,
    FinishReason,
    FoundFeatures,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    Written,
)
from wire.telemetry.tracing import span

logger = logging.getLogger(__name__)

_RETRY_PAUSE_S = 0.1  # time to notice other connections that broke, too
_MAX_KNOWN_IMAGES = 16_384


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Written sequences of one request, and the seconds of each stage."""

    sequences: tuple[Written, ...]
    text: str  # one line for each sequence
    finish_reason: FinishReason  # `length` if any sequence was truncated
    num_prompt_tokens: int  # image tokens excluded
    num_generated_tokens: int  # start and end tokens included
    num_constrained_tokens: int  # chosen by the grammar against the model
    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # waiting for slots, and transport
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class FeaturesFound:
    """The runner has the features of the image of a call."""

    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features


class RunnerClient:
    """Calls to the runner of one model, about itself or one of its adapters."""

    def __init__(self, model_id: str, channel: RunnerChannel) -> None:
        self._model_id = model_id
        self._channel = channel
        # keys of those sent or found
        self._known_images: LRUCache[str, None] = LRUCache(_MAX_KNOWN_IMAGES)

    async def write(
        self,
        manifest: Manifest,
        image: LazyImage,
        specs: Sequence[SequenceSpec],
        on_text: OnText | None = None,
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `manifest` is that of the model or adapter that `specs` name. `on_text` receives their text
        as it is written. Cancellation ends them in the runner.
        """
        start_s = time.monotonic()
        preprocess_s = 0.0
        answered = None
        replay = None if on_text is None else StreamReplay(len(specs), on_text)
        call = RunnerCall(image.key(manifest), specs)
        try:
            if call.image_key in self._known_images or not image.is_light:
                with suppress(FeaturesMissing):
                    answered = await self._retried(call, replay)
            if answered is None:
                missing_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.pixels(manifest)
                preprocess_s = time.monotonic() - missing_s
                answered = await self._retried(replace(call, pixels=pixels), replay)
        except ChannelError as error:
            raise error_of_call(self._model_id, error) from error
        self._known_images[call.image_key] = None
        return written_answers(answered, preprocess_s, time.monotonic() - start_s)

    async def events(
        self, manifest: Manifest, image: LazyImage, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[FeaturesFound | SequenceEnd, None]:
        """Yield the source of the features, then the outcome of each sequence as it ends.

        Raise `ServiceError`. After a broken connection only those that had not ended are repeated.
        """
        image_key = image.key(manifest)
        pixels = None
        preprocess_s = 0.0
        needs_pixels = image_key not in self._known_images and image.is_light
        is_repeated = False
        whole = [spec.model_copy(update={"has_pieces": False}) for spec in specs]
        unfinished = list(range(len(specs)))
        while unfinished:
            if needs_pixels and pixels is None:
                missing_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.pixels(manifest)
                preprocess_s = time.monotonic() - missing_s
            asked = tuple(unfinished)
            call = RunnerCall(image_key, [whole[index] for index in asked], pixels)
            try:
                async with aclosing(self._channel.stream(call)) as events:
                    async for event in events:
                        if isinstance(event, FoundFeatures):
                            self._known_images[image_key] = None
                            yield FeaturesFound(event, preprocess_s)
                        elif isinstance(event, SequenceEnd):
                            index = asked[event.index]
                            unfinished.remove(index)
                            yield SequenceEnd(index=index, outcome=event.outcome)
            except ChannelError as error:
                if isinstance(error, FeaturesMissing) and pixels is None:
                    needs_pixels = True
                    continue
                may_repeat = isinstance(error, RunnerUnreachable | RunnerUnavailable)
                if is_repeated or not may_repeat:
                    raise error_of_call(self._model_id, error) from error
                is_repeated = True
                logger.warning("repeating a call to the runner of %s: %r", self._model_id, error)
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            if unfinished:
                raise self._cut_stream()

    async def is_ready(self) -> bool:
        return await self._channel.is_ready()

    async def adapters(self) -> AdapterStates | None:
        """Return the adapters of the runner, or None if it does not answer, as while it starts."""
        return await self._channel.adapters()

    async def close(self) -> None:
        await self._channel.close()

    async def _retried(self, call: RunnerCall, replay: StreamReplay | None) -> Outcomes:
        send = self._channel.write if replay is None else partial(self._stream, replay)
        try:
            return await send(call)
        except (RunnerUnreachable, RunnerUnavailable) as error:
            logger.warning("repeating the call to the runner of %s after %r", self._model_id, error)
        await asyncio.sleep(_RETRY_PAUSE_S)
        return await send(call)

    async def _stream(self, replay: StreamReplay, call: RunnerCall) -> Outcomes:
        """Send text as it arrives; a repeated stream continues after the text already sent."""
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
            problem = f"the runner of {self._model_id} restarted"
            advice = "a sampled answer cannot be resumed; retry the request"
            raise NotReady(f"{problem}; {advice}") from error
        if len(replay.outcomes) < len(call.sequences):
            raise self._cut_stream()
        return Outcomes(features=features, outcomes=replay.outcomes)

    def _cut_stream(self) -> InternalError:
        return InternalError(
            f"the runner of {self._model_id} ended the stream before the answer was complete"
        )


def written_answers(answered: Outcomes, preprocess_s: float, elapsed_s: float) -> WrittenAnswers:
    """Return a call's sequences; raise the error of the first that failed."""
    sequences: list[Written] = []
    for outcome in answered.outcomes:
        if isinstance(outcome, Failed):
            raise error_of_outcome(outcome)
        sequences.append(outcome)
    features = answered.features
    totals_s = [each.queue_s + each.prefill_s + each.decode_s for each in sequences]
    slowest = sequences[totals_s.index(max(totals_s))]  # all of them run at the same time
    known_s = preprocess_s + features.encode_s + features.queue_s
    known_s += slowest.prefill_s + slowest.decode_s
    is_truncated = any(sequence.finish_reason == "length" for sequence in sequences)
    return WrittenAnswers(
        sequences=tuple(sequences),
        text="\n".join(sequence.text for sequence in sequences),
        finish_reason="length" if is_truncated else "stop",
        num_prompt_tokens=sum(sequence.num_prompt_tokens for sequence in sequences),
        num_generated_tokens=sum(sequence.num_generated_tokens for sequence in sequences),
        num_constrained_tokens=sum(sequence.num_constrained_tokens for sequence in sequences),
        features=features,
        preprocess_s=preprocess_s,
        queue_s=max(0.0, elapsed_s - known_s),
        prefill_s=slowest.prefill_s,
        decode_s=slowest.decode_s,
    )
