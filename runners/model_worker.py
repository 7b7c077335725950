"""Encoders, features cache and decoder of one model, and the path of a call through them.

The model has an encoder, and so has each adapter that changes the vision tower or the projector.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from runners.adapters.hot_loading import HotAdapters
from runners.decoder_worker import DecoderWorker
from runners.encoder.features_cache import CachedFeatures, VisionCache
from runners.options import RunnerOptions
from wire.artifacts.adapter_folder import AdapterScan
from wire.artifacts.devices import decoder_device
from wire.artifacts.manifest import Manifest, read_manifest, verify_files
from wire.artifacts.model_store import artifact_folder, read_adapters
from wire.host import num_cores, return_freed_memory
from wire.pixels import Pixels
from wire.runner_messages import (
    AdapterStates,
    EncodedImage,
    Failed,
    FoundFeatures,
    ImageToEncode,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    WritingEvent,
)

_NOT_PENDING = EncodedImage(
    encode_s=0.0, failed=Failed(code="internal", message="no pending call has this image")
)
_NO_FEATURES = FoundFeatures(outcome="miss")  # the image of the call failed


class ModelWorker:
    """Answers calls for one model; `batched` passes image keys through the batcher to `encode`."""

    def __init__(
        self,
        model_id: str,
        options: RunnerOptions,
        batched: Callable[[str], Awaitable[EncodedImage]],
    ) -> None:
        self._model_id = model_id
        self._options = options
        self._batched = batched

    def load(self) -> None:
        """Load both parts and run each once; raise `ArtifactError` or a library's error.

        The start of the service has hashed the artifacts (service/supervision/checks.py); a runner
        that restarts loads at once.
        """
        # starts a thread: only after this process was forked
        from runners.encoder.worker import Encoders

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
        self._encoders = Encoders(options, device, num_cores())
        self._encoders.add(None, manifest, folder)
        for adapter_folder, adapter in adapters:
            if adapter.has_encoder:
                self._encoders.add(adapter.build_key, adapter, adapter_folder)
        self._decoder = DecoderWorker(manifest, options, device)
        self._decoder.load(folder, num_cores(), adapters)
        self._watch_adapters(manifest, folder)
        self._cache = VisionCache(
            self._model_id, options.max_cache_bytes, options.limits.max_waiting, self._batched
        )
        return_freed_memory()
        self.watchdogs = (*self._encoders.watchdogs, self._decoder.watchdog)

    def _watch_adapters(self, manifest: Manifest, folder: Path) -> None:
        """Load the adapters of the watched folder, if any, and start to watch it."""
        self._hot_adapters: HotAdapters | None = None
        options = self._options
        if options.adapters_folder is not None:
            self._hot_adapters = HotAdapters(
                AdapterScan(options.adapters_folder),
                manifest,
                options.aliases,
                folder,
                replace(options.adapter_limits, max_total_bytes=self._decoder.max_adapter_bytes),
                call_timeout_s=options.timeout_s,
                read_timeout_s=min(options.limits.stuck_after_s, options.start_timeout_s / 2),
            )
            self._hot_adapters.watch(self._decoder.adapters)

    def adapters(self) -> AdapterStates:
        """Return the adapters that are loaded, and those that are refused."""
        refused = {} if self._hot_adapters is None else dict(self._hot_adapters.refused)
        return AdapterStates(loaded=self._decoder.adapters.keys, refused=refused)

    def is_ready(self) -> bool:
        """Return True while encoder batches and decode steps are in time."""
        return all(watchdog.is_in_time() for watchdog in self.watchdogs)

    def stop(self) -> None:
        self._decoder.stop()

    def encode(self, images: Sequence[ImageToEncode]) -> list[EncodedImage]:
        """Encode a batch in the batcher's thread; return the outcomes in order."""
        encodings = self._cache.encodings
        keys = [image.image_key for image in images]
        found = {key: encodings.get(key) for key in keys}  # read once: another thread removes them
        pending = {key: encoding for key, encoding in found.items() if encoding is not None}
        outcomes = dict(zip(pending, self._encoders.encode(list(pending.values())), strict=True))
        return [outcomes.get(key, _NOT_PENDING) for key in keys]

    async def features(
        self, image_key: str, pixels: Pixels | None, adapter: str | None
    ) -> CachedFeatures | Failed | None:
        """Return the features of an image, its failure, or None if neither cached nor in `pixels`.

        An `adapter` with its own encoder computes them, else the model's encoder.
        """
        return await self._cache.get(image_key, pixels, self._encoders.owner(adapter))

    async def write(
        self, features: CachedFeatures | Failed, specs: Sequence[SequenceSpec]
    ) -> Outcomes:
        """Return the outcomes of all sequences; cancellation frees their slots within one step."""
        if isinstance(features, Failed):
            return Outcomes(features=_NO_FEATURES, outcomes=[features for _ in specs])
        outcomes = await self._decoder.write(features.tensor, specs)
        return Outcomes(features=features.found, outcomes=outcomes)

    async def stream(
        self, features: CachedFeatures | Failed, specs: Sequence[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield the features' source, then settled text, and finally each sequence's outcome."""
        if isinstance(features, Failed):
            yield _NO_FEATURES
            for index in range(len(specs)):
                yield SequenceEnd(index=index, outcome=features)
            return
        yield features.found
        async with aclosing(self._decoder.stream(features.tensor, specs)) as events:
            async for event in events:
                yield event
