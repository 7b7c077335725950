"""The channel to the model of this process: no HTTP, no BentoML service.

The offline run answers through it, and a service with DIPTYCH_PROCESSES=one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import chain

from runners.encoder.features_cache import CachedFeatures
from runners.model_worker import ModelWorker
from runners.options import RunnerOptions, encoder_batch_size
from runners.watchdog import Watchdog, bounded_start, end_process_when_stuck
from wire.artifacts.devices import encoder_device
from wire.artifacts.manifest import (
    ArtifactError,
    Manifest,
    choose_precision,
    files_of_runner,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder, read_adapters
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import (
    AdapterStates,
    EncodedImage,
    Failed,
    ImageToEncode,
    Outcomes,
    WritingEvent,
)


class InProcessChannel:
    """Encoder, decoder and scheduler of one model; `load` must be called first."""

    def __init__(self, manifest: Manifest, options: RunnerOptions) -> None:
        self._manifest = manifest
        self._options = options
        batcher = EncoderBatcher(
            lambda images: self._worker.encode(images), encoder_batch_size(options)
        )
        self._worker = ModelWorker(manifest.model_id, options, batcher.encoded)

    def load(self) -> None:
        self._worker.load()
        expected = self._manifest.build_key
        if self._worker.build_key != expected:
            raise ArtifactError(
                f"the artifacts of {self._manifest.model_id} have been exported again while they"
                f" were loaded: {expected}, now {self._worker.build_key}"
            )

    @property
    def watchdogs(self) -> Sequence[Watchdog]:
        return self._worker.watchdogs

    async def write(self, call: RunnerCall) -> Outcomes:
        return await self._worker.write(await self._features(call), call.sequences)

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield events as they are written; closing the generator cancels the sequences."""
        features = await self._features(call)
        async with aclosing(self._worker.stream(features, call.sequences)) as events:
            async for event in events:
                yield event

    async def is_ready(self) -> bool:
        return self._worker.is_ready()

    async def adapters(self) -> AdapterStates | None:
        return self._worker.adapters()

    async def close(self) -> None:
        """Finish the accepted sequences; make no call after that."""
        await asyncio.to_thread(self._worker.stop)

    async def _features(self, call: RunnerCall) -> CachedFeatures | Failed:
        """Raise `FeaturesMissing` for a new image without pixels."""
        adapter = call.sequences[0].adapter
        features = await self._worker.features(call.image_key, call.pixels, adapter)
        if features is None:
            raise FeaturesMissing
        return features


def verify_artifacts(manifest: Manifest, options: RunnerOptions) -> None:
    """Hash the files that a channel loads; raise `ArtifactError`."""
    device = encoder_device(options.device)
    precision = choose_precision(manifest, "encoder", device, options.encoder_precision)
    folder = artifact_folder(manifest.model_id)
    verify_files(folder, manifest, files_of_runner(manifest, precision))
    for adapter_folder, adapter in read_adapters(options.adapters, manifest):
        verify_files(adapter_folder, adapter)


def load_channels(models: Sequence[tuple[Manifest, RunnerOptions]]) -> list[InProcessChannel]:
    """Load models into this process, which ends when the start or a step of one is stuck.

    One after another: a capture of CUDA graphs forbids other threads to allocate. Raise
    `ArtifactError` or a library's error.
    """
    _, options = models[0]
    channels = [InProcessChannel(*model) for model in models]
    with bounded_start(options.start_timeout_s):
        for channel in channels:
            channel.load()
    watchdogs = chain.from_iterable(channel.watchdogs for channel in channels)
    end_process_when_stuck(list(watchdogs), options.limits.stuck_after_s)
    return channels


class EncoderBatcher:
    """Encodes images in one thread; those that wait while a batch runs are the next batch.

    One batch runs at a time, in the order of the images; no image waits for another to arrive.
    Each gets its outcome, or the error of its batch.
    """

    def __init__(
        self, encode: Callable[[Sequence[ImageToEncode]], list[EncodedImage]], max_batch_size: int
    ) -> None:
        self._encode_batch = encode
        self._max_batch_size = max_batch_size
        self._waiting: list[tuple[str, asyncio.Future[EncodedImage]]] = []
        self._encoder_thread = ThreadPoolExecutor(1, "encoder")
        self._encoding: asyncio.Task[None] | None = None

    async def encoded(self, image_key: str) -> EncodedImage:
        """Return the outcome of an image; raise the error of its batch."""
        encoded: asyncio.Future[EncodedImage] = asyncio.get_running_loop().create_future()
        self._waiting.append((image_key, encoded))
        if self._encoding is None:
            self._encoding = asyncio.create_task(self._encode_waiting())
        return await encoded

    async def _encode_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._waiting[: self._max_batch_size]
            del self._waiting[: len(batch)]
            images = [ImageToEncode(image_key=key) for key, _ in batch]
            encode = self._encode_batch
            try:
                outcomes = await loop.run_in_executor(self._encoder_thread, encode, images)
            except Exception as error:  # the images wait for it
                for _, encoded in batch:
                    encoded.set_exception(error)
                continue
            for (_, encoded), outcome in zip(batch, outcomes, strict=True):
                encoded.set_result(outcome)
        self._encoding = None
