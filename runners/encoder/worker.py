"""The vision encoders of a runner: encode batches of images into features on the decoder's device.

The model has one, and so has each adapter that changes the vision tower or the projector. Batches
come from BentoML's adaptive batcher (runners/service.py), which is unknown here. It has one queue
for all encoders: they share the cores or the GPU, where two batches at the same time would only
slow each other down. A batch with images of several runs in parts, one after another.
"""

import logging
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from runners.encoder.features_cache import Encoding
from runners.encoder.session import CudaOptions, load_encoder
from runners.errors import exit_if_device_lost
from runners.options import RunnerOptions, encoder_batch_size
from runners.watchdog import Watchdog
from wire.artifacts.devices import encoder_device, num_threads
from wire.artifacts.manifest import Device, Manifest, choose_precision
from wire.runner_messages import EncodedImage, Failed
from wire.telemetry.runner_metrics import BATCH_SIZE
from wire.telemetry.tracing import past_span

logger = logging.getLogger(__name__)


class EncoderWorker:
    """Encodes batches for one model; the features (N, C), float32, are on `features_device`."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, features_device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._features_device = features_device
        self._name = f"the encoder of {manifest.model_id}"
        self.watchdog = Watchdog(self._name, options.limits.stuck_after_s)

    def load(self, folder: Path, num_cores: int) -> None:
        """Load the graph and encode a black image; a GPU first captures or runs all batch sizes."""
        options = self._options
        manifest = self._manifest
        device = encoder_device(options.device)
        precision = choose_precision(manifest, "encoder", device, options.encoder_precision)
        threads = num_threads(options.encoder_threads, manifest.hidden_size, num_cores)
        max_bytes = None
        # without a GPU, ONNX Runtime says what is missing
        if device == "cuda" and torch.cuda.is_available():
            free_bytes, _ = torch.cuda.mem_get_info()
            # half of its part of the GPU: the decoder, which loads later, needs the rest
            max_bytes = free_bytes // options.num_sharing_gpu // 2
        cuda = CudaOptions(encoder_batch_size(options), max_bytes, self._name)
        self._encoder = load_encoder(folder, threads, precision, device, cuda)
        width, height = manifest.image_size_wh
        self._encoder.encode(np.zeros((1, height, width, 3), dtype=np.uint8))

    def encode(self, batch: Sequence[Encoding]) -> list[EncodedImage]:
        """Set the features of each image; if a batch fails, its images are encoded one by one."""
        BATCH_SIZE.labels(self._manifest.model_id, "encode").observe(len(batch))
        start_s = time.monotonic()
        with self.watchdog.iteration():
            failures = self._encode(batch)
        encode_s = time.monotonic() - start_s
        size = {"diptych.batch_size": len(batch)}
        for encoding in batch:
            past_span("encode_queue", encoding.started_s, start_s, parent=encoding.trace)
            past_span("encode_batch", start_s, start_s + encode_s, size, encoding.trace)
        return [EncodedImage(encode_s=encode_s, failed=failed) for failed in failures]

    def _encode(self, batch: Sequence[Encoding]) -> list[Failed | None]:
        try:
            if len(batch) == 1:  # a view, which may be in shared memory
                pixels = batch[0].pixels[np.newaxis]
            else:
                pixels = np.stack([encoding.pixels for encoding in batch])
            features = self._encoder.encode(pixels)
        except Exception as error:  # any exception must reach the calls whose images caused it
            exit_if_device_lost(error, self._name)
            if len(batch) == 1:
                logger.exception("%s failed for an image", self._name)
                message = f"the vision encoder failed: {type(error).__name__}"
                return [Failed(code="internal", message=message)]
            logger.warning(
                "a batch of %d images failed; encoding them one by one: %r", len(batch), error
            )
            return list(chain.from_iterable(self._encode([encoding]) for encoding in batch))
        for encoding, row in zip(batch, features, strict=True):
            # A copy: a cached view would keep the features of the whole batch in memory.
            features_row = row if len(batch) == 1 else row.clone()
            encoding.features = features_row.to(self._features_device)
        return [None] * len(batch)


class Encoders:
    """The encoders of a model (key None) and of its adapters (by build key)."""

    def __init__(self, options: RunnerOptions, features_device: Device, num_cores: int) -> None:
        self._options = options
        self._features_device = features_device
        self._num_cores = num_cores
        self.workers: dict[str | None, EncoderWorker] = {}

    @property
    def watchdogs(self) -> tuple[Watchdog, ...]:
        return tuple(worker.watchdog for worker in self.workers.values())

    def add(self, adapter: str | None, manifest: Manifest, folder: Path) -> None:
        self.workers[adapter] = EncoderWorker(manifest, self._options, self._features_device)
        self.workers[adapter].load(folder, self._num_cores)

    def encode(self, batch: Sequence[Encoding]) -> list[EncodedImage]:
        """Set the features of images, by their adapters' encoders; return outcomes in order."""
        outcomes: dict[int, EncodedImage] = {}
        for adapter in dict.fromkeys(encoding.adapter for encoding in batch):
            places = [place for place, encoding in enumerate(batch) if encoding.adapter == adapter]
            encoded = self.workers[adapter].encode([batch[place] for place in places])
            outcomes |= zip(places, encoded, strict=True)
        return [outcomes[place] for place in range(len(batch))]
