"""Calls to the runner of one model, over a channel.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded,
resized and sent with a second call; those of a small image that this process has not sent before,
with the first. After a broken connection the sequences that had not ended are called for once more:
calls are idempotent, and text that was already sent is not sent again.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain

from cachetools import LRUCache

from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
)
from service.images.decoding import LazyImage
from wire.artifacts.manifest import Manifest
from wire.runner_channel import (
    CallFailed,
    CallTimedOut,
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
    Outcome,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)
from wire.telemetry.tracing import span

logger = logging.getLogger(__name__)

_RETRY_PAUSE_S = 0.1  # time to notice other connections that broke, too
_MAX_KNOWN_IMAGES = 16_384

OnText = Callable[[str], None]
Send = Callable[[RunnerCall], AsyncGenerator[WritingEvent, None]]


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Written sequences of one request, and the seconds of each stage."""

    sequences: tuple[Written, ...]
    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # waiting for slots, and transport
    prefill_s: float
    decode_s: float
    is_cut: bool = False  # objects were left out

    @property
    def text(self) -> str:
        """One line for each sequence."""
        return "\n".join(sequence.text for sequence in self.sequences)

    @property
    def finish_reason(self) -> FinishReason:
        """`length` if any sequence was truncated."""
        is_truncated = any(sequence.finish_reason == "length" for sequence in self.sequences)
        return "length" if self.is_cut or is_truncated else "stop"


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The runner has the features of a call's image; the sequences that have not ended begin."""

    features: FoundFeatures
    preprocess_s: float


CallEvent = CallBegun | TextPiece | SequenceEnd


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
        outcomes: dict[int, Outcome] = {}
        text = None if on_text is None else StreamedText(self._model_id, len(specs), on_text)
        send = self._whole if on_text is None else self._channel.stream
        async with aclosing(self._events(send, manifest, image, specs)) as events:
            async for event in events:
                if isinstance(event, CallBegun):
                    begun = event
                elif isinstance(event, SequenceEnd):
                    outcomes[event.index] = event.outcome
                if text is not None:
                    text.receive(event)
        return written_answers(outcomes, begun, time.monotonic() - start_s)

    def events(
        self, manifest: Manifest, image: LazyImage, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[CallEvent, None]:
        """Yield the source of the features, then the outcome of each sequence as it ends.

        Raise `ServiceError`.
        """
        ends_only = [spec.model_copy(update={"has_pieces": False}) for spec in specs]
        return self._events(self._channel.stream, manifest, image, ends_only)

    async def is_ready(self) -> bool:
        return await self._channel.is_ready()

    async def adapters(self) -> AdapterStates | None:
        """Return the adapters of the runner, or None if it does not answer, as while it starts."""
        return await self._channel.adapters()

    async def close(self) -> None:
        await self._channel.close()

    async def _whole(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield the events of a call that is answered as a whole."""
        answer = await self._channel.write(call)
        yield answer.features
        for index, outcome in enumerate(answer.outcomes):
            yield SequenceEnd(index=index, outcome=outcome)

    async def _events(
        self, send: Send, manifest: Manifest, image: LazyImage, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[CallEvent, None]:
        image_key = image.key(manifest)
        pixels = None
        preprocess_s = 0.0
        needs_pixels = image_key not in self._known_images and image.is_light
        is_repeated = False
        unfinished = list(range(len(specs)))
        while unfinished:
            if needs_pixels and pixels is None:
                missing_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.pixels(manifest)
                preprocess_s = time.monotonic() - missing_s
            indices = tuple(unfinished)
            call = RunnerCall(image_key, [specs[index] for index in indices], pixels)
            try:
                async with aclosing(send(call)) as events:
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
                may_repeat = isinstance(error, RunnerUnreachable | RunnerUnavailable)
                if is_repeated or not may_repeat:
                    raise _call_error(self._model_id, error) from error
                is_repeated = True
                logger.warning("repeating a call to the runner of %s: %r", self._model_id, error)
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            if unfinished:
                raise InternalError(
                    f"the runner of {self._model_id} ended the stream before the answer was"
                    " complete"
                )


class StreamedText:
    """Sends the text of the first sequence as it arrives, then that of the next in a new line."""

    def __init__(self, model_id: str, num_sequences: int, send: OnText) -> None:
        self._model_id = model_id
        self._send = send
        self._texts = [""] * num_sequences  # received since the last call began
        self._sent = [""] * num_sequences
        self._has_ended = [False] * num_sequences
        self._current = 0  # index of the sequence that is being sent

    def receive(self, event: CallEvent) -> None:
        """Take an event and send the text that is next.

        Raise `NotReady` if a repeated call writes another text than was sent.
        """
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
        self._send_current()
        while self._has_ended[self._current] and self._current < len(self._texts) - 1:
            self._current += 1
            self._send("\n")
            self._send_current()

    def _send_current(self) -> None:
        text = self._texts[self._current]
        sent = self._sent[self._current]
        is_replay = len(text) < len(sent) and not self._has_ended[self._current]
        expected_prefix = sent[: len(text)] if is_replay else sent
        if not text.startswith(expected_prefix):  # the answer was sampled
            raise NotReady(
                f"the runner of {self._model_id} restarted; a sampled answer cannot be resumed;"
                " retry the request"
            )
        if len(text) > len(sent):
            self._sent[self._current] = text
            self._send(text[len(sent) :])


def written_answers(
    outcomes: Mapping[int, Outcome], begun: CallBegun, elapsed_s: float
) -> WrittenAnswers:
    """Return a call's sequences; raise the error of the first that failed."""
    sequences: list[Written] = []
    for _, outcome in sorted(outcomes.items()):
        if isinstance(outcome, Failed):
            raise _outcome_error(outcome)
        sequences.append(outcome)
    totals_s = [written.queue_s + written.prefill_s + written.decode_s for written in sequences]
    slowest = sequences[totals_s.index(max(totals_s))]  # all of them run at the same time
    features = begun.features
    known_s = begun.preprocess_s + features.encode_s + features.queue_s
    known_s += slowest.prefill_s + slowest.decode_s
    return WrittenAnswers(
        tuple(sequences),
        features,
        preprocess_s=begun.preprocess_s,
        queue_s=max(0.0, elapsed_s - known_s),
        prefill_s=slowest.prefill_s,
        decode_s=slowest.decode_s,
    )


def _call_error(model_id: str, error: ChannelError) -> ServiceError:
    """Return the error for a call to the runner of `model_id` that failed."""
    runner = f"the runner of {model_id}"
    match error:
        case RunnerUnavailable():
            problem = f"no runner of {model_id} with this gateway's build is ready"
            return NotReady(f"{problem}; retry in a few seconds")
        case CallTimedOut():
            return DeadlineExceeded(f"{runner} did not answer before the deadline")
        case CallFailed():
            return InternalError(f"{runner} answered with {error}; its log has the cause")
        case _:
            logger.warning("%s is unreachable: %r", runner, error)
            return NotReady(f"{runner} is starting or restarting; retry in a few seconds")


def _outcome_error(failed: Failed) -> ServiceError:
    """Return the error for a sequence or image that failed in an answered call."""
    match failed.code:
        case "sequence_too_long":
            is_asked_for = "max_new_tokens" in failed.message
            return InvalidRequest(failed.message, "max_new_tokens" if is_asked_for else None)
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "unknown_token":
            return InvalidRequest(failed.message, "messages")
        case "unknown_adapter":
            return NotReady(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)


_CallKey = tuple[str, str | None]  # image and adapter


@dataclass(slots=True)
class _JoinedPart:
    """The sequences of one caller, in a call that several share."""

    specs: Sequence[SequenceSpec]
    begun_s: float = field(default_factory=time.monotonic)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    answered: "asyncio.Future[WrittenAnswers]" = field(default_factory=asyncio.Future)

    def end(self, index: int, outcome: Outcome, begun: CallBegun) -> None:
        """Take the outcome of a sequence; answer with the last."""
        self.outcomes[index] = outcome
        if len(self.outcomes) < len(self.specs) or self.answered.done():
            return
        try:
            elapsed_s = time.monotonic() - self.begun_s
            self.answered.set_result(written_answers(self.outcomes, begun, elapsed_s))
        except ServiceError as error:
            self.answered.set_exception(error)


class JoinedCalls:
    """The calls of one request to one runner, until `close`.

    Simultaneous questions about an image are one call, whose sequences end on their own: each
    caller gets its answer when its last sequence ends. The first call about an image may send
    pixels; later ones wait until the runner has its features, and send none.
    """

    def __init__(self, runner: RunnerClient) -> None:
        self._runner = runner
        self._waiting: dict[_CallKey, list[_JoinedPart]] = {}
        self._has_features: dict[_CallKey, asyncio.Event] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def write(
        self,
        manifest: Manifest,
        image: LazyImage,
        specs: Sequence[SequenceSpec],
        _on_text: OnText | None = None,
    ) -> WrittenAnswers:
        """Return the written sequences as `RunnerClient.write` does; their text is not streamed."""
        key = image.key(manifest), specs[0].adapter
        part = _JoinedPart(specs)
        if key in self._waiting:
            self._waiting[key].append(part)
        else:
            self._waiting[key] = [part]
            task = asyncio.create_task(self._send(key, manifest, image))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await part.answered

    @staticmethod
    async def close(joined: Iterable["JoinedCalls"]) -> None:
        """End all calls, which ends their sequences in the runners.

        They end, too, if this is cancelled: a call is cancelled at once, and only once.
        """
        sending = set(chain.from_iterable(calls._sending for calls in joined))
        for task in sending:
            task.cancel()
        if sending:
            await asyncio.wait(sending)

    async def _send(self, key: _CallKey, manifest: Manifest, image: LazyImage) -> None:
        has_features = self._has_features.get(key)
        if has_features is None:
            has_features = self._has_features[key] = asyncio.Event()
        else:
            await has_features.wait()
        await asyncio.sleep(0)  # the other callers of this turn of the event loop join
        parts = self._waiting.pop(key)
        specs: list[SequenceSpec] = []
        sequences: list[tuple[_JoinedPart, int]] = []
        for part in parts:
            specs += part.specs
            sequences += [(part, index) for index in range(len(part.specs))]
        try:
            async with aclosing(self._runner.events(manifest, image, specs)) as events:
                async for event in events:
                    if isinstance(event, CallBegun):
                        begun = event
                        has_features.set()
                    elif isinstance(event, SequenceEnd):
                        part, index = sequences[event.index]
                        part.end(index, event.outcome, begun)
        except Exception as error:  # a defect, too, is raised by the callers
            for part in parts:
                if not part.answered.done():
                    part.answered.set_exception(error)
        finally:
            has_features.set()
