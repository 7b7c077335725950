"""The decoder of a runner: the loaded decoder, its scheduler's thread, and the way from message to message."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import GEN_AI_USAGE_OUTPUT_TOKENS
from opentelemetry.trace import get_current_span
from torch import Tensor

from runners.artifacts.devices import num_threads
from runners.artifacts.manifest import Device, Manifest
from runners.artifacts.precision import choose_precision
from runners.decoder.answers import AnswerText, to_failed, to_request, to_written
from runners.decoder.errors import SequenceError
from runners.decoder.scheduler import Scheduler, WrittenSequence
from runners.decoder.sequences import SequenceRequest, TokenListener
from runners.models.load import load_decoder
from runners.options import RunnerOptions
from runners.telemetry.tracing import note_error, past_span
from runners.telemetry.watchdog import Watchdog
from runners.transport.messages import Failed, Outcome, SequenceEnd, SequenceSpec, TextPiece, WritingEvent

_WARM_UP_TOKENS = 4
_WARM_UP_TIMEOUT_S = 600.0


class DecoderWorker:
    """The decoder of one model and the thread that runs it, on `device`."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._device = device

    def load(self, folder: Path, num_cores: int) -> None:
        """Load the weights, start the scheduler and write one sequence from empty image features."""
        options, manifest = self._options, self._manifest
        torch.set_num_threads(num_threads(options.decoder_threads, manifest.hidden_size, num_cores))
        precision = choose_precision(manifest, "decoder", self._device, options.decoder_precision)
        self._decoder = load_decoder(folder, manifest.family, precision, self._device, options.max_positions)
        self._scheduler = Scheduler(self._decoder, manifest.model_id, options.limits)
        self._scheduler.start()
        self._warm_up()

    def _warm_up(self) -> None:
        features = torch.zeros(self._manifest.num_image_tokens, self._manifest.hidden_size)
        spec = SequenceSpec(segments=[("warm up", False)], max_new_tokens=_WARM_UP_TOKENS, timeout_s=_WARM_UP_TIMEOUT_S)
        (future,) = self._scheduler.submit([to_request(self._decoder, features, spec)])
        future.result(_WARM_UP_TIMEOUT_S)

    @property
    def watchdog(self) -> Watchdog:
        """The watchdog of the scheduler's turns."""
        return self._scheduler.watchdog

    def stop(self) -> None:
        """Write what was accepted, then end."""
        self._scheduler.stop()

    async def write(self, image_features: Tensor, specs: Sequence[SequenceSpec]) -> list[Outcome]:
        """Return the outcome of each sequence; one that fails does not touch the others.

        Cancelled, it cancels their futures.
        """
        return await asyncio.gather(*self._start(image_features, specs, [None] * len(specs)))

    async def stream(self, image_features: Tensor, specs: Sequence[SequenceSpec]) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is settled, and what became of each; closed, it cancels them."""
        events: asyncio.Queue[WritingEvent] = asyncio.Queue()
        listeners = [self._listener(index, events) for index in range(len(specs))]
        writings = enumerate(self._start(image_features, specs, listeners))
        ending = asyncio.gather(*(_end(index, writing, events) for index, writing in writings))
        try:
            num_ended = 0
            while num_ended < len(specs):
                event = await events.get()
                num_ended += isinstance(event, SequenceEnd)
                yield event
        finally:
            ending.cancel()

    def _start(
        self, image_features: Tensor, specs: Sequence[SequenceSpec], listeners: Sequence[TokenListener | None]
    ) -> list[Coroutine[Any, Any, Outcome]]:
        """Submit the sequences; return what waits for what becomes of each."""
        try:
            heard = zip(specs, listeners, strict=True)
            requests = [to_request(self._decoder, image_features, spec, listener) for spec, listener in heard]
            futures = self._scheduler.submit(requests)
        except SequenceError as error:
            return [_ended(to_failed(error)) for _ in specs]
        return [self._outcome(request, future) for request, future in zip(requests, futures, strict=True)]

    async def _outcome(self, request: SequenceRequest, future: "Future[WrittenSequence]") -> Outcome:
        """Return what became of a sequence; an exception of the model is named, not quoted."""
        try:
            written = await asyncio.wrap_future(future)
            _trace(written)
            return to_written(self._decoder, request, written)
        except SequenceError as error:
            failed = to_failed(error)
        except Exception as error:
            failed = Failed(code="internal", message=f"the decoder failed: {type(error).__name__}")
        note_error(get_current_span(), failed.code)
        return failed

    def _listener(self, index: int, events: "asyncio.Queue[WritingEvent]") -> TokenListener:
        """Return what makes pieces of text of the tokens of a sequence, in the decoder's thread."""
        loop, answer = asyncio.get_running_loop(), AnswerText(self._decoder)

        def hear(token_ids: Sequence[int]) -> None:
            if text := answer.push(token_ids):
                loop.call_soon_threadsafe(events.put_nowait, TextPiece(index=index, text=text))

        return hear


def _trace(written: WrittenSequence) -> None:
    """Make the spans of a sequence that ended just now."""
    end_s = time.monotonic()
    prefilled_s = end_s - written.decode_s
    admitted_s = prefilled_s - written.prefill_s
    past_span("decode_queue", admitted_s - written.queue_s, admitted_s)
    past_span("prefill", admitted_s, prefilled_s)
    past_span("decode_steps", prefilled_s, end_s, {GEN_AI_USAGE_OUTPUT_TOKENS: len(written.sequence.token_ids)})


async def _ended(failed: Failed) -> Outcome:
    return failed


async def _end(index: int, writing: Coroutine[Any, Any, Outcome], events: "asyncio.Queue[WritingEvent]") -> None:
    events.put_nowait(SequenceEnd(index=index, outcome=await writing))
