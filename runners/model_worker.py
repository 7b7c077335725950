"""A model in one process: its encoders, features cache and decoder, and the path of a call.

to_request      a sequence of a call as the decoder's request; to_written: its answer as a message
DecoderWorker   the weights of the decoder, its scheduler, and calls as sequences
ModelWorker     all parts: the channel to this model, which runners/service.py serves over HTTP.
                The model has an encoder, and so has each adapter that changes the vision tower or
                the projector
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
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

from runners.adapters.hot_loading import HotAdapters
from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest, TokenListener, WrittenSequence
from runners.encoder.features_cache import CachedFeatures, Encoding, VisionCache
from runners.errors import SequenceError
from runners.models.load import load_decoder
from runners.options import (
    BATCHES_IN_FLIGHT,
    CUDA_RESERVE_BYTES,
    RunnerOptions,
    default_positions,
    default_prefill_tokens,
    encoder_batch_size,
    max_default_slots,
)
from runners.tokens.choice import choice_bytes
from wire.artifacts.adapter_folder import AdapterScan
from wire.artifacts.devices import decoder_device, num_threads
from wire.artifacts.manifest import (
    ADAPTER_FILE,
    Device,
    Manifest,
    choose_precision,
    read_manifest,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder, read_adapters
from wire.host import num_cores, return_freed_memory
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import (
    AdapterStates,
    EncodedImage,
    Failed,
    FoundFeatures,
    ImageToEncode,
    Outcome,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)
from wire.telemetry.runner_metrics import measure_gpu
from wire.telemetry.tracing import note_error, past_span

logger = logging.getLogger(__name__)

_WARM_UP = SequenceSpec(segments=[("warm up", False)], max_new_tokens=4, timeout_s=600.0)
# If neither the request nor the checkpoint's generation_config sets it. Source: Florence-2's model
# card.
DEFAULT_MAX_NEW_TOKENS = 1024


def to_request(
    decoder: Decoder,
    image_features: Tensor,
    spec: SequenceSpec,
    on_tokens: TokenListener | None = None,
) -> SequenceRequest:
    """Return the request over `image_features` (N, C); raise `SequenceError` for a bad `spec`."""
    token = spec.own_token
    if token is not None and not decoder.text.tokenizer.has_control_token(token):
        raise SequenceError("unknown_token", f"{token[:80]} is not a token of this checkpoint")
    if spec.adapter is not None and spec.adapter not in decoder.adapters.keys:
        message = f"no adapter of the build {spec.adapter[:80]!r} is loaded; retry in a few seconds"
        raise SequenceError("unknown_adapter", message)
    prompt_ids = decoder.text.prompt_ids(spec.segments)
    limit = decoder.shape.max_new_tokens(len(image_features) + len(prompt_ids))
    if spec.max_new_tokens is not None and spec.max_new_tokens > limit:
        message = f"max_new_tokens is {spec.max_new_tokens}; at most {limit} are allowed here"
        raise SequenceError("sequence_too_long", message)
    max_new_tokens = spec.max_new_tokens or decoder.rules.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    default_beams = decoder.rules.num_beams if spec.temperature == 0 else 1
    return SequenceRequest(
        image_features,
        prompt_ids,
        max_new_tokens=min(max_new_tokens, limit),
        temperature=spec.temperature,
        seed=spec.seed,
        top_p=spec.top_p,
        num_beams=default_beams if spec.num_beams is None else spec.num_beams,
        constraint=None if spec.grammar is None else decoder.text.constraints.get(spec.grammar),
        deadline_s=time.monotonic() + spec.timeout_s,
        on_tokens=on_tokens,
        prompt_words=None if spec.grammar is None else decoder.text.prompt_words(prompt_ids),
        adapter=spec.adapter,
        client=spec.client,
    )


class AnswerText:
    """The incremental text of one answer, without the tokens that start and end every answer."""

    def __init__(self, decoder: Decoder) -> None:
        self._complete = decoder.text.tokenizer.text_stream()
        rules = decoder.rules
        self.framing_ids = rules.eos_token_ids | {
            rules.bos_token_id,
            rules.forced_bos_token_id,
            decoder.text.pad_token_id,
        }
        self.text = ""
        self.token_ends: list[int] = []  # offset in `text` after each token that has one

    def push(self, token_ids: Iterable[int]) -> str:
        before = len(self.text)
        for token_id in token_ids:
            if token_id not in self.framing_ids:
                self.text += self._complete(token_id)
                self.token_ends.append(len(self.text))
        return self.text[before:]


def to_written(decoder: Decoder, request: SequenceRequest, written: WrittenSequence) -> Written:
    sequence = written.sequence
    answer = AnswerText(decoder)
    answer.push(sequence.token_ids)
    pairs = zip(sequence.token_ids, sequence.logprobs, strict=True)
    return Written(
        text=answer.text,
        token_ends=answer.token_ends,
        logprobs=[logprob for token_id, logprob in pairs if token_id not in answer.framing_ids],
        finish_reason=sequence.finish_reason,
        num_prompt_tokens=len(request.prompt_ids),
        num_generated_tokens=len(sequence.token_ids),
        num_constrained_tokens=sequence.num_constrained,
        queue_s=written.queue_s,
        prefill_s=written.prefill_s,
        decode_s=written.decode_s,
    )


class DecoderWorker:
    """The decoder of one model on `device`, with the thread that runs it."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._device = device
        self._has_adapters = bool(options.adapters or options.adapters_folder)
        self._reserved_bytes = CUDA_RESERVE_BYTES + options.max_cache_bytes
        self.adapters = Adapters(device)
        self.max_adapter_bytes = options.adapter_limits.max_total_bytes

    def load(
        self, folder: Path, num_cores: int, adapters: Sequence[tuple[Path, Manifest]] = ()
    ) -> None:
        """Load the weights and `adapters`, start the scheduler and generate a first sequence."""
        options = self._options
        manifest = self._manifest
        torch.set_num_threads(num_threads(options.decoder_threads, manifest.hidden_size, num_cores))
        device = self._device
        self._decoder = load_decoder(
            folder,
            manifest.family,
            choose_precision(manifest, "decoder", device, options.decoder_precision),
            device,
            options.max_positions or default_positions(device, manifest.num_image_tokens),
            adapters=self.adapters if self._has_adapters else None,
            num_image_tokens=manifest.num_image_tokens,
        )
        if self._has_adapters and device == "cuda":
            self.open_pool(torch.cuda.mem_get_info()[0])
        for adapter_folder, adapter in adapters:
            self.adapters.add(adapter.build_key, load_file(adapter_folder / ADAPTER_FILE))
        limits = options.limits
        if not limits.num_slots:
            num_slots = max_default_slots("cpu")
            if device == "cuda":
                num_slots = self.default_slots(torch.cuda.mem_get_info()[0])
            limits = replace(limits, num_slots=num_slots)
        if not limits.max_prefill_tokens:
            num_tokens = default_prefill_tokens(device, manifest.hidden_size)
            limits = replace(limits, max_prefill_tokens=num_tokens)
        self.scheduler = Scheduler(self._decoder, manifest.model_id, limits)
        self.scheduler.start()
        features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)
        request = to_request(self._decoder, features, _WARM_UP)
        self.scheduler.submit([request])[0].result(_WARM_UP.timeout_s)

    def open_pool(self, free_bytes: int) -> None:
        """Limit the adapters to their part of `free_bytes` of a GPU; half of it is the pool."""
        # slots need most of what the reserve leaves
        free_bytes = max(0, free_bytes - self._reserved_bytes) // self._options.num_sharing_gpu
        self.max_adapter_bytes = min(self.max_adapter_bytes, free_bytes // 4)
        self.adapters.open_pool(POOL_RANK, self.max_adapter_bytes // 2)

    def default_slots(self, free_bytes: int) -> int:
        """Return the slots that fit into `free_bytes` of a GPU; raise `RuntimeError` if none."""
        slot_bytes = self._decoder.shape.slot_bytes + choice_bytes(self._decoder.shape.num_tokens)
        num_sharing = self._options.num_sharing_gpu
        reserved_bytes = self._reserved_bytes
        if self._options.adapters_folder is not None:  # adapters of all runners grow later
            room_bytes = self.max_adapter_bytes - self.adapters.num_bytes_with({})
            reserved_bytes += num_sharing * max(0, room_bytes)
        num_fitting = (free_bytes - reserved_bytes) // num_sharing // slot_bytes
        num_slots = max(0, min(num_fitting, max_default_slots("cuda")))
        message = (
            f"{self._manifest.model_id}: {num_slots} slots of {slot_bytes / 1e6:.1f} MB fit into"
            f" {free_bytes / 1e9:.1f} GB of GPU memory, {reserved_bytes / 1e9:.1f} GB reserved;"
            f" runners that share it: {num_sharing}"
        )
        if not num_slots:
            lower = "DIPTYCH_DECODER_MAX_POSITIONS or DIPTYCH_VISION_CACHE_MB"
            raise RuntimeError(f"{message}; lower {lower}")
        logger.info(message)
        return num_slots

    async def stream(
        self, image_features: Tensor, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of sequences, then each outcome; closing it cancels them."""
        events: asyncio.Queue[WritingEvent] = asyncio.Queue()

        async def put_end(index: int, outcome: Coroutine[Any, Any, Outcome]) -> None:
            events.put_nowait(SequenceEnd(index=index, outcome=await outcome))

        listeners = [self._listener(index, events) for index in range(len(specs))]
        outcomes = self.submit(image_features, specs, listeners)
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

    def submit(
        self,
        image_features: Tensor,
        specs: Sequence[SequenceSpec],
        listeners: Sequence[TokenListener | None],
    ) -> list[Coroutine[Any, Any, Outcome]]:
        """Return a coroutine for the outcome of each; an invalid sequence fails the whole call."""
        pairs = zip(specs, listeners, strict=True)
        try:
            requests = [to_request(self._decoder, image_features, *pair) for pair in pairs]
            futures = self.scheduler.submit(requests)
        except SequenceError as error:
            failed = Failed(code=error.code, message=str(error))
            return [asyncio.sleep(0, failed) for _ in specs]  # coroutines, as those below
        return [self._outcome(*pair) for pair in zip(requests, futures, strict=True)]

    async def _outcome(
        self, request: SequenceRequest, future: "Future[WrittenSequence]"
    ) -> Outcome:
        """Return the outcome of a sequence; only the class of a model's exception is reported."""
        try:
            written = await asyncio.wrap_future(future)
            end_s = time.monotonic()
            prefilled_s = end_s - written.decode_s
            admitted_s = prefilled_s - written.prefill_s
            past_span("decode_queue", admitted_s - written.queue_s, admitted_s)
            past_span("prefill", admitted_s, prefilled_s)
            num_tokens = {GEN_AI_USAGE_OUTPUT_TOKENS: len(written.sequence.token_ids)}
            past_span("decode_steps", prefilled_s, end_s, num_tokens)
            return to_written(self._decoder, request, written)
        except SequenceError as error:
            failed = Failed(code=error.code, message=str(error))
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


_NOT_PENDING = EncodedImage(
    encode_s=0.0, failed=Failed(code="internal", message="no pending call has this image")
)
_NO_FEATURES = FoundFeatures(outcome="miss")  # the image of the call failed


class ModelWorker:
    """The channel to one model; `batched` passes places through the batcher to `encode`."""

    def __init__(
        self,
        model_id: str,
        options: RunnerOptions,
        batched: Callable[[int], Awaitable[EncodedImage]],
    ) -> None:
        self._model_id = model_id
        self._options = options
        self._batched = batched

    def load(self) -> None:
        """Load both parts and run each once; raise `ArtifactError` or a library's error.

        The files have been hashed (service/supervision/roles.py): a runner that restarts loads at
        once.
        """
        # starts a thread: only after this process was forked
        from runners.encoder.session import EncoderWorker

        options = self._options
        folder = artifact_folder(self._model_id)
        manifest = read_manifest(folder)
        verify_files(folder, manifest, names=())
        device = decoder_device(options.device)
        width, height = manifest.image_size_wh
        self.build_key = manifest.build_key
        self.image_shape_hwc = (height, width, 3)
        adapters = read_adapters(options.adapters, manifest)
        # All encoders before the decoder: a capture of CUDA graphs forbids other threads to
        # allocate, and the decoder makes as many slots as then fit. Too little memory for an
        # encoder must stop the start, not fail requests.
        encoder = EncoderWorker(manifest, options, device)
        encoder.load(folder, num_cores())
        self.encoders: dict[str | None, EncoderWorker] = {None: encoder}
        for adapter_folder, adapter in adapters:
            if adapter.has_encoder:
                encoder = EncoderWorker(adapter, options, device)
                encoder.load(adapter_folder, num_cores())
                self.encoders[adapter.build_key] = encoder
        self._decoder = DecoderWorker(manifest, options, device)
        self._decoder.load(folder, num_cores(), adapters)
        self._hot_adapters: HotAdapters | None = None
        if options.adapters_folder is not None:
            max_bytes = self._decoder.max_adapter_bytes
            limits = replace(options.adapter_limits, max_total_bytes=max_bytes)
            scan = AdapterScan(options.adapters_folder)
            options = replace(options, adapter_limits=limits)
            self._hot_adapters = HotAdapters(scan, manifest, folder, options)
            self._hot_adapters.watch(self._decoder.adapters)
        self._cache = VisionCache(
            self._model_id,
            options.max_cache_bytes,
            options.limits.max_waiting,
            BATCHES_IN_FLIGHT * encoder_batch_size(options),
            self._batched,
            self._stage,
        )
        if device == "cuda":
            uuid = f"GPU-{torch.cuda.get_device_properties().uuid}"
            threading.Thread(target=measure_gpu, args=(uuid,), daemon=True).start()
        return_freed_memory()
        watchdogs = [encoder.watchdog for encoder in self.encoders.values()]
        self.watchdogs = (*watchdogs, self._decoder.scheduler.watchdog)

    async def adapters(self) -> AdapterStates:
        refused = {} if self._hot_adapters is None else dict(self._hot_adapters.refused)
        return AdapterStates(loaded=self._decoder.adapters.keys, refused=refused)

    async def is_ready(self) -> bool:
        return all(watchdog.is_in_time() for watchdog in self.watchdogs)

    def stop(self) -> None:
        self._decoder.scheduler.stop()

    async def close(self) -> None:
        """Finish the accepted sequences; make no call after that."""
        await asyncio.to_thread(self.stop)

    def _stage(self, encoding: Encoding) -> "Future[int] | None":
        return self.encoders[encoding.adapter].stage(encoding)

    def encode(self, images: Sequence[ImageToEncode]) -> list[EncodedImage]:
        """Encode in the batcher's thread, the images of each encoder together; keep the order."""
        pending: dict[str | None, dict[int, Encoding]] = {}  # by adapter and place
        for image in images:
            encoding = self._cache.take(image.place)
            if encoding is not None:
                pending.setdefault(encoding.adapter, {})[image.place] = encoding
        outcomes: dict[int, EncodedImage] = {}
        for adapter, encodings in pending.items():
            encoded = self.encoders[adapter].encode(list(encodings.values()))
            outcomes.update(zip(encodings, encoded, strict=True))
        return [outcomes.get(image.place, _NOT_PENDING) for image in images]

    async def write(self, call: RunnerCall) -> Outcomes:
        """Return the outcomes of all sequences; cancellation frees their slots within one step."""
        features = await self.features(call)
        if isinstance(features, Failed):
            return Outcomes(features=_NO_FEATURES, outcomes=[features for _ in call.sequences])
        no_listeners = [None] * len(call.sequences)
        outcomes = self._decoder.submit(features.tensor, call.sequences, no_listeners)
        return Outcomes(features=features.source, outcomes=await asyncio.gather(*outcomes))

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield the features' source, then settled text, and finally each sequence's outcome."""
        features = await self.features(call)
        if isinstance(features, Failed):
            yield _NO_FEATURES
            for index in range(len(call.sequences)):
                yield SequenceEnd(index=index, outcome=features)
            return
        yield features.source
        async with aclosing(self._decoder.stream(features.tensor, call.sequences)) as events:
            async for event in events:
                yield event

    async def features(self, call: RunnerCall) -> CachedFeatures | Failed:
        """Return the features of a call's image; raise `FeaturesMissing` without pixels."""
        adapter = call.sequences[0].adapter if call.sequences else None
        if adapter not in self.encoders:
            adapter = None  # the model's encodes for it
        client = call.sequences[0].client if call.sequences else ""
        features = await self._cache.get(call.image_key, call.pixels, adapter, client)
        if features is None:
            raise FeaturesMissing
        return features
