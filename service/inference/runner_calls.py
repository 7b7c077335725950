"""Calls to the runner of one model, over a channel.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded,
resized and sent with a second call; those of a small image that is new to this process, with the
first. The runner encodes an image once for all calls that send it. Calls are idempotent: one that
no runner took is repeated at most three times. One whose connection broke may have ended the
runner: its sequences that had not ended are called for once more, alone, and then fail. Text that
was already sent is not sent again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from cachetools import LRUCache

from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    RunnerFailed,
    ServiceError,
)
from service.images.decoding import LazyImage
from wire.artifacts.manifest import Manifest
from wire.runner_channel import (
    CallBroken,
    CallTimedOut,
    ChannelError,
    FeaturesMissing,
    RunnerCall,
    RunnerChannel,
    RunnerUnreachable,
)
from wire.runner_messages import (
    Failed,
    FinishReason,
    FoundFeatures,
    Outcome,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)
from wire.telemetry.tracing import span

logger = logging.getLogger(__name__)

# before each repetition: the process that ends, or a proxy that has not noticed, may take the first
_RETRY_PAUSES_S = (0.1, 0.4, 1.0)
_MAX_KNOWN_IMAGES = 16_384
# the field that a failure of a sequence is about
_PARAMS = {
    "sequence_too_long": "max_new_tokens",
    "too_many_beams": "num_beams",
    "unknown_token": "messages",
}

OnText = Callable[[str], None]
Send = Callable[[RunnerCall], AsyncGenerator[WritingEvent, None]]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, summed over its sequences; the names are those of all interfaces."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int  # start and end tokens included
    constrained_tokens: int  # chosen by the grammar against the model


@dataclass(slots=True)
class WrittenAnswers:
    """Written sequences of one request, and the seconds of each stage."""

    sequences: tuple[Written, ...]
    features: FoundFeatures
    image_tokens: int  # of all views
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # waiting for slots, and transport
    prefill_s: float
    decode_s: float
    is_cut: bool = False  # objects were left out

    text: str = field(init=False)
    finish_reason: FinishReason = field(init=False)
    usage: Usage = field(init=False)

    def __post_init__(self) -> None:
        is_cut = self.is_cut
        prompt_tokens = generated_tokens = constrained_tokens = 0
        for written in self.sequences:
            is_cut |= written.finish_reason == "length"
            prompt_tokens += written.num_prompt_tokens
            generated_tokens += written.num_generated_tokens
            constrained_tokens += written.num_constrained_tokens
        self.text = "\n".join([written.text for written in self.sequences])
        self.finish_reason = "length" if is_cut else "stop"
        self.usage = Usage(self.image_tokens, prompt_tokens, generated_tokens, constrained_tokens)


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The sequences of a call that have not ended begin."""

    features: FoundFeatures
    preprocess_s: float


CallEvent = CallBegun | TextPiece | SequenceEnd


class Isolation:
    """Runs repeated calls alone: one at a time, and if `is_single` beside no other call.

    Behind a proxy with several runners, the calls in flight and new ones are of other runners.
    """

    def __init__(self, is_single: bool) -> None:
        self._is_single = is_single
        self._turn = asyncio.Lock()  # of the repeated calls
        self._num_shared = 0
        self._num_repeated = 0  # waiting or running
        self._changed = asyncio.Event()  # one of both counts has become 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        while self._is_single and self._num_repeated:
            await self._wait()
        self._num_shared += 1
        try:
            yield
        finally:
            self._num_shared -= 1
            self._changed.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._num_repeated += 1
        try:
            async with self._turn:
                while self._is_single and self._num_shared:
                    await self._wait()
                yield
        finally:
            self._num_repeated -= 1
            self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class RunnerClient:
    """Calls to the runner of one model, about itself or one of its adapters.

    `is_single` is False for a proxy with several runners.
    """

    def __init__(self, model_id: str, channel: RunnerChannel, is_single: bool = True) -> None:
        self._model_id = model_id
        self.channel = channel
        # keys of images whose features the runner had
        self._known_images: LRUCache[str, None] = LRUCache(_MAX_KNOWN_IMAGES)
        self._isolation = Isolation(is_single)
        self.is_ready = channel.is_ready
        self.close = channel.close

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
        outcomes: dict[int, Outcome] = {}
        text = None if on_text is None else StreamedText(self._model_id, len(specs), on_text)
        send = self._whole if on_text is None else self.channel.stream
        async with aclosing(self._events(send, manifest, image, specs)) as events:
            async for event in events:
                if isinstance(event, CallBegun):
                    begun = event
                elif isinstance(event, SequenceEnd):
                    outcomes[event.index] = event.outcome
                if text is not None:
                    text.receive(event)
        sequences: list[Written] = []
        for _, outcome in sorted(outcomes.items()):
            if isinstance(outcome, Failed):
                raise _outcome_error(outcome)
            sequences.append(outcome)
        times_s = [end.queue_s + end.prefill_s + end.decode_s for end in sequences]
        slowest = sequences[times_s.index(max(times_s))]  # all of them run at the same time
        features = begun.features
        known_s = begun.preprocess_s + features.encode_s + features.queue_s
        known_s += slowest.prefill_s + slowest.decode_s
        return WrittenAnswers(
            tuple(sequences),
            features,
            manifest.num_image_tokens,
            preprocess_s=begun.preprocess_s,
            queue_s=max(0.0, time.monotonic() - start_s - known_s),
            prefill_s=slowest.prefill_s,
            decode_s=slowest.decode_s,
        )

    async def _whole(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        answer = await self.channel.write(call)
        yield answer.features
        for index, outcome in enumerate(answer.outcomes):
            yield SequenceEnd(index=index, outcome=outcome)

    async def _events(
        self, send: Send, manifest: Manifest, image: LazyImage, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[CallEvent, None]:
        image_key = image.key(manifest)
        pixels = None
        preprocess_s = 0.0
        needs_pixels = image_key not in self._known_images and image.header.is_light
        has_broken = False
        pauses_s = iter(_RETRY_PAUSES_S)
        unfinished = list(range(len(specs)))
        while unfinished:
            if needs_pixels and pixels is None:
                start_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.resized(manifest.image_size_wh, manifest.resample)
                preprocess_s = time.monotonic() - start_s
            indices = tuple(unfinished)
            call = RunnerCall(image_key, [specs[index] for index in indices], pixels)
            turn = self._isolation.alone() if has_broken else self._isolation.shared()
            try:
                async with turn, aclosing(send(call)) as events:
                    async for event in events:
                        if isinstance(event, FoundFeatures):
                            self._known_images[image_key] = None
                            yield CallBegun(event, preprocess_s)
                            continue
                        event.index = indices[event.index]
                        if isinstance(event, SequenceEnd):
                            unfinished.remove(event.index)
                        yield event
            except ChannelError as error:
                if isinstance(error, FeaturesMissing) and pixels is None:
                    needs_pixels = True
                    continue
                if isinstance(error, CallBroken) and has_broken:
                    raise self._failed(error) from error
                has_broken |= isinstance(error, CallBroken)
                pause_s = next(pauses_s, None)
                if pause_s is None or not isinstance(error, RunnerUnreachable):
                    raise _call_error(self._model_id, error) from error
                await asyncio.sleep(pause_s)
                continue
            if unfinished:
                problem = f"the runner of {self._model_id} ended the stream before the answer was"
                raise ServiceError(f"{problem} complete")

    def _failed(self, error: CallBroken) -> RunnerFailed:
        runner = f"the runner of {self._model_id}"
        logger.error("%s ended twice while it answered one request: %r", runner, error)
        return RunnerFailed(
            f"{runner} ended twice while it answered this request; change the request"
        )


class StreamedText:
    """Sends the text of the first sequence as it arrives, then that of the next in a new line."""

    def __init__(self, model_id: str, num_sequences: int, send: OnText) -> None:
        self._model_id = model_id
        self._send = send
        self._texts = [""] * num_sequences  # received since the last call began
        self._has_ended = [False] * num_sequences
        self._sent = ""

    def receive(self, event: CallEvent) -> None:
        """Send the text that is next; raise `NotReady` if a repeated call writes another text."""
        if isinstance(event, CallBegun):
            for index, has_ended in enumerate(self._has_ended):
                if not has_ended:
                    self._texts[index] = ""
            return
        if isinstance(event, TextPiece):
            self._texts[event.index] += event.text
        else:
            self._has_ended[event.index] = True
            if isinstance(event.outcome, Written):
                self._texts[event.index] = event.outcome.text
        is_whole = all(self._has_ended)
        num_shown = len(self._texts) if is_whole else self._has_ended.index(False) + 1
        text = "\n".join(self._texts[:num_shown])
        if text.startswith(self._sent):
            if len(text) > len(self._sent):
                self._send(text[len(self._sent) :])
                self._sent = text
        elif is_whole or not self._sent.startswith(text):  # the answer was sampled
            raise NotReady(
                f"the runner of {self._model_id} restarted; a sampled answer cannot be resumed;"
                " retry the request"
            )


def _call_error(model_id: str, error: ChannelError) -> ServiceError:
    runner = f"the runner of {model_id}"
    match error:
        case RunnerUnreachable() | FeaturesMissing():
            logger.warning("%s is unreachable: %r", runner, error)
            return NotReady(f"{runner} is starting or restarting; retry in a few seconds")
        case CallTimedOut():
            return DeadlineExceeded(f"{runner} did not answer before the deadline")
        case _:
            return ServiceError(f"{runner} answered with {error}; its log has the cause")


def _outcome_error(failed: Failed) -> ServiceError:
    match failed.code:
        case "sequence_too_long" if "max_new_tokens" not in failed.message:
            return InvalidRequest(failed.message)
        case "sequence_too_long" | "too_many_beams" | "unknown_token":
            return InvalidRequest(failed.message, _PARAMS[failed.code])
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "unknown_adapter":
            return NotReady(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return ServiceError(failed.message)
