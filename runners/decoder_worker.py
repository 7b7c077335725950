"""The decoder of a runner: its weights, its scheduler, and the conversion of calls to sequences."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import (
    GEN_AI_USAGE_OUTPUT_TOKENS,
)
from opentelemetry.trace import get_current_span
from safetensors.torch import load_file
from torch import Tensor

from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.decoder.answers import AnswerText, to_failed, to_request, to_written
from runners.decoder.scheduler import Scheduler, WrittenSequence
from runners.decoder.sequences import SequenceRequest, TokenListener
from runners.errors import SequenceError
from runners.models.load import load_decoder
from runners.options import (
    CUDA_RESERVE_BYTES,
    RunnerOptions,
    default_positions,
    default_prefill_tokens,
    max_adapter_bytes,
    max_default_slots,
    slots_that_fit,
)
from runners.tokens.choice import choice_bytes
from runners.watchdog import Watchdog
from wire.artifacts.devices import num_threads
from wire.artifacts.manifest import ADAPTER_FILE, Device, Manifest, choose_precision
from wire.runner_messages import (
    Failed,
    Outcome,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
)
from wire.telemetry.tracing import note_error, past_span

logger = logging.getLogger(__name__)

_WARM_UP = SequenceSpec(segments=[("warm up", False)], max_new_tokens=4, timeout_s=600.0)


class DecoderWorker:
    """The decoder of one model on `device`, with the thread that runs it."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._device = device
        self._has_adapters = bool(options.adapters or options.adapters_folder)
        self.adapters = Adapters(device)
        self.max_adapter_bytes = options.adapter_limits.max_total_bytes

    def load(
        self, folder: Path, num_cores: int, adapters: Sequence[tuple[Path, Manifest]] = ()
    ) -> None:
        """Load the weights and those of `adapters`, start the scheduler and generate one sequence
        from zero features.
        """
        options = self._options
        manifest = self._manifest
        torch.set_num_threads(num_threads(options.decoder_threads, manifest.hidden_size, num_cores))
        device = self._device
        precision = choose_precision(manifest, "decoder", device, options.decoder_precision)
        positions = options.max_positions or default_positions(device, manifest.num_image_tokens)
        self._decoder = load_decoder(
            folder,
            manifest.family,
            precision,
            device,
            positions,
            adapters=self.adapters if self._has_adapters else None,
            num_image_tokens=manifest.num_image_tokens,
        )
        if self._has_adapters and device == "cuda":
            self.open_pool(torch.cuda.mem_get_info()[0])
        for adapter_folder, adapter in adapters:
            self.adapters.add(adapter.build_key, load_file(adapter_folder / ADAPTER_FILE))
        num_slots = options.limits.num_slots
        if not num_slots and device == "cpu":
            num_slots = max_default_slots("cpu")
        elif not num_slots:
            num_slots = self.default_slots(torch.cuda.mem_get_info()[0])
        max_prefill_tokens = options.limits.max_prefill_tokens or default_prefill_tokens(
            device, manifest.hidden_size
        )
        limits = replace(options.limits, num_slots=num_slots, max_prefill_tokens=max_prefill_tokens)
        self._scheduler = Scheduler(self._decoder, manifest.model_id, limits)
        self._scheduler.start()
        features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)
        request = to_request(self._decoder, features, _WARM_UP)
        self._scheduler.submit([request])[0].result(_WARM_UP.timeout_s)

    @property
    def _reserved_bytes(self) -> int:
        return CUDA_RESERVE_BYTES + self._options.max_cache_bytes

    def open_pool(self, free_bytes: int) -> None:
        """Limit the adapters to what they may take of `free_bytes` of a GPU; give half of it to the
        pool of captured passes.
        """
        self.max_adapter_bytes = max_adapter_bytes(
            free_bytes,
            self._reserved_bytes,
            self._options.adapter_limits.max_total_bytes,
            self._options.num_sharing_gpu,
        )
        self.adapters.open_pool(POOL_RANK, self.max_adapter_bytes // 2)
        pool = self.adapters.pool
        logger.info(
            "%s: adapters may take %.0f MB of GPU memory; captured steps have a pool of %d ranks",
            self._manifest.model_id,
            self.max_adapter_bytes / 1e6,
            0 if pool is None else pool.num_columns,
        )

    def default_slots(self, free_bytes: int) -> int:
        """Return the slots that fit into `free_bytes` of a GPU; raise `RuntimeError` if none."""
        slot_bytes = self._decoder.shape.slot_bytes + choice_bytes(self._decoder.shape.num_tokens)
        num_sharing = self._options.num_sharing_gpu
        reserved_bytes = self._reserved_bytes
        if self._options.adapters_folder is not None:  # adapters of all runners grow later
            room_bytes = self.max_adapter_bytes - self.adapters.num_bytes_with({})
            reserved_bytes += num_sharing * max(0, room_bytes)
        num_slots = slots_that_fit(free_bytes, reserved_bytes, slot_bytes, num_sharing)
        message = (
            f"{self._manifest.model_id}: {num_slots} slots of {slot_bytes / 1e6:.1f} MB fit into"
            f" {free_bytes / 1e9:.1f} GB of GPU memory, of which {reserved_bytes / 1e9:.1f} GB are"
            f" reserved; runners that share it: {num_sharing}"
        )
        if not num_slots:
            raise RuntimeError(
                f"{message}; lower DIPTYCH_DECODER_MAX_POSITIONS, DIPTYCH_VISION_CACHE_MB or"
                " DIPTYCH_ADAPTERS_MB, or set DIPTYCH_DECODER_MAX_BATCH_SIZE"
            )
        logger.info(message)
        return num_slots

    @property
    def watchdog(self) -> Watchdog:
        return self._scheduler.watchdog

    def stop(self) -> None:
        self._scheduler.stop()

    async def write(self, image_features: Tensor, specs: Sequence[SequenceSpec]) -> list[Outcome]:
        """Return the outcomes of sequences over features (N, C); cancellation ends all."""
        return await asyncio.gather(*self._submit(image_features, specs, [None] * len(specs)))

    async def stream(
        self, image_features: Tensor, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield text of sequences with pieces, then each outcome; closing it cancels them."""
        events: asyncio.Queue[WritingEvent] = asyncio.Queue()
        listeners = [
            self._listener(index, events) if spec.has_pieces else None
            for index, spec in enumerate(specs)
        ]
        outcomes = self._submit(image_features, specs, listeners)

        async def put_end(index: int, outcome: Coroutine[Any, Any, Outcome]) -> None:
            events.put_nowait(SequenceEnd(index=index, outcome=await outcome))

        ends = [asyncio.create_task(put_end(*pair)) for pair in enumerate(outcomes)]
        try:
            num_ended = 0
            while num_ended < len(specs):
                event = await events.get()
                num_ended += isinstance(event, SequenceEnd)
                yield event
        finally:
            for end in ends:
                end.cancel()

    def _submit(
        self,
        image_features: Tensor,
        specs: Sequence[SequenceSpec],
        listeners: Sequence[TokenListener | None],
    ) -> list[Coroutine[Any, Any, Outcome]]:
        """Return a coroutine for the outcome of each; an invalid sequence fails the whole call."""
        pairs = zip(specs, listeners, strict=True)
        try:
            requests = [to_request(self._decoder, image_features, *pair) for pair in pairs]
            futures = self._scheduler.submit(requests)
        except SequenceError as error:
            failed = to_failed(error)
            return [asyncio.sleep(0, failed) for _ in specs]  # coroutines, as those below
        return [self._outcome(*pair) for pair in zip(requests, futures, strict=True)]

    async def _outcome(
        self, request: SequenceRequest, future: "Future[WrittenSequence]"
    ) -> Outcome:
        """Return the outcome of a sequence; only the class of a model's exception is reported."""
        try:
            written = await asyncio.wrap_future(future)
            _record_spans(written)
            return to_written(self._decoder, request, written)
        except SequenceError as error:
            failed = to_failed(error)
        except Exception as error:
            failed = Failed(code="internal", message=f"the decoder failed: {type(error).__name__}")
        note_error(get_current_span(), failed.code)
        return failed

    def _listener(self, index: int, events: "asyncio.Queue[WritingEvent]") -> TokenListener:
        """Return a listener of the decoder's thread that turns tokens into `TextPiece` events."""
        loop = asyncio.get_running_loop()
        answer = AnswerText(self._decoder)

        def on_tokens(token_ids: Sequence[int]) -> None:
            if text := answer.push(token_ids):
                loop.call_soon_threadsafe(events.put_nowait, TextPiece(index=index, text=text))

        return on_tokens


def _record_spans(written: WrittenSequence) -> None:
    """Make the spans of a sequence that has just ended."""
    end_s = time.monotonic()
    prefilled_s = end_s - written.decode_s
    admitted_s = prefilled_s - written.prefill_s
    past_span("decode_queue", admitted_s - written.queue_s, admitted_s)
    past_span("prefill", admitted_s, prefilled_s)
    num_tokens = {GEN_AI_USAGE_OUTPUT_TOKENS: len(written.sequence.token_ids)}
    past_span("decode_steps", prefilled_s, end_s, num_tokens)
