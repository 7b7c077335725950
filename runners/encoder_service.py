"""The BentoML service of one model's vision encoder: images of many requests in batches for ONNX Runtime."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray
from opentelemetry.context import Context, get_current

from runners import tracing
from runners.artifacts import Device, read_manifest, verify_files
from runners.builds import LoadedBuild
from runners.devices import DeviceSetting, encoder_device, num_threads
from runners.feature_cache import FeatureCache
from runners.messages import Encoded, EncodedImage, EncodeOutcome, Failed, ImageToEncode, MemoryAddress
from runners.metrics import BATCH_SIZE, START_TIME_SECONDS
from runners.model_store import artifact_folder
from runners.precision import WantedPrecision, choose_precision
from runners.runner_service import runner_service
from runners.shared_arrays import MemoryUnreachable, can_open, place, view
from runners.tracing import TraceOptions, past_span
from runners.waiting_images import WaitingImages
from runners.watchdog import Watchdog

# On a CPU a batch takes as long as its images one by one: a large one only keeps the first from the decoder.
_BATCH_SIZES: dict[Device, int] = {"cpu": 2, "cuda": 16}


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How an encoder service batches."""

    max_batch_size: int  # images; 0: the device's own
    num_threads: int  # of ONNX Runtime; 0: as the model's width asks for
    device: DeviceSetting
    precision: WantedPrecision
    timeout_s: int
    stuck_after_s: float  # of one batch
    max_cache_bytes: int  # of features for gateways on other hosts
    traces: TraceOptions


@dataclass(frozen=True, slots=True)
class _Asked:
    """An image that waits."""

    image: ImageToEncode
    since_s: float
    trace: Context


def make_encoder_service(model_id: str, options: EncoderOptions) -> Any:
    """Return the encoder service of one model."""
    loaded = LoadedBuild()

    class Encoder:
        """Turns resized images into image features."""

        @bentoml.on_startup
        def load(self) -> None:
            """Check and load the artifacts, and encode one batch for real: only then is the service ready."""
            # ONNX Runtime is loaded here, and not in the process that this one is forked from: it starts a thread.
            from runners.vision_encoder import VisionEncoder

            START_TIME_SECONDS.labels(model_id, "encoder").set_to_current_time()
            tracing.start(options.traces, f"{model_id}-encoder")
            folder = artifact_folder(model_id)
            manifest = read_manifest(folder)
            verify_files(folder, manifest)
            device = encoder_device(options.device)
            precision = choose_precision(manifest, "encoder", device, options.precision)
            threads = num_threads(options.num_threads, manifest.hidden_size, len(os.sched_getaffinity(0)))
            self._encoder = VisionEncoder(folder, threads, precision, device)
            self._encoder.load()
            width, height = manifest.image_size_wh
            self._encoder.encode(np.zeros((1, height, width, 3), dtype=np.uint8))
            self._waiting = WaitingImages(self._encode_batch, options.max_batch_size or _BATCH_SIZES[device])
            self._cache = FeatureCache(model_id, options.max_cache_bytes)
            self._watchdog = Watchdog(f"the encoder of {model_id}", options.stuck_after_s)
            loaded.key = manifest.build_key

        @bentoml.on_shutdown
        def stop(self) -> None:
            """Send the spans that are left."""
            tracing.stop()

        async def __is_ready__(self) -> bool:
            """Say whether batches come to an end."""
            return self._watchdog.is_content()

        @bentoml.api
        async def encode(self, image: ImageToEncode) -> Encoded:
            """Return image features, float32 (N, C); encoded with whatever images wait at the same time."""
            return Encoded(outcome=await self._cache.outcome(image, self._outcome))

        async def _outcome(self, image: ImageToEncode) -> EncodeOutcome:
            return await self._waiting.outcome(_Asked(image, time.monotonic(), get_current()))

        @bentoml.api
        async def can_open(self, memory: MemoryAddress) -> bool:
            """Say whether arrays in this memory can be sent here."""
            return can_open(memory)

        def _encode_batch(self, batch: Sequence[_Asked]) -> list[EncodeOutcome]:
            """Return what became of each image; one whose memory is not to be had fails alone."""
            BATCH_SIZE.labels(model_id, "encode").observe(len(batch))
            pixels = [_pixels(asked.image) for asked in batch]
            start_s = time.monotonic()
            with self._watchdog.turn():
                features = self._encode([item for item in pixels if not isinstance(item, Failed)])
            encode_s = time.monotonic() - start_s
            _trace(batch, start_s, encode_s)
            return [
                item if isinstance(item, Failed) else _placed(next(features), asked.image, encode_s)
                for item, asked in zip(pixels, batch, strict=True)
            ]

        def _encode(self, pixels: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
            if not pixels:
                return iter(())
            # One image alone is read where it lies.
            return iter(self._encoder.encode(pixels[0][np.newaxis] if len(pixels) == 1 else np.stack(pixels)))

    return runner_service(f"{model_id}-encoder", Encoder, options.timeout_s, loaded)


def _trace(batch: Sequence[_Asked], start_s: float, encode_s: float) -> None:
    """Make the spans of a batch, which has a part in the trace of each of its images."""
    for asked in batch:
        past_span("encode_queue", asked.since_s, start_s, parent=asked.trace)
        size = {"diptych.batch_size": len(batch)}
        past_span("encode_batch", start_s, start_s + encode_s, size, asked.trace)


def _pixels(image: ImageToEncode) -> NDArray[np.uint8] | Failed:
    """Return the pixels (H, W, 3), or say why not."""
    try:
        return view(image.pixels)
    except MemoryUnreachable as error:
        return Failed(code="internal", message=f"the pixels are not to be had: {error}")


def _placed(image_features: NDArray[np.float32], image: ImageToEncode, encode_s: float) -> EncodedImage | Failed:
    try:
        return EncodedImage(image_features=place(image_features, image.target), encode_s=encode_s)
    except MemoryUnreachable as error:
        return Failed(code="internal", message=f"there is no place for the features: {error}")
