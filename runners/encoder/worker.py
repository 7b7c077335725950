"""The vision encoder of a runner: batches of images become features on the decoder's device.

It knows ONNX Runtime's session (runners/encoder/session.py) and the images that wait; who made the batch it does not
know: that is BentoML's adaptive batcher (runners/service.py).
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from runners.artifacts.devices import encoder_device, num_threads
from runners.artifacts.manifest import Device, Manifest
from runners.artifacts.precision import choose_precision
from runners.encoder.features_cache import Encoding
from runners.encoder.session import VisionEncoder
from runners.options import RunnerOptions
from runners.telemetry.metrics import BATCH_SIZE
from runners.telemetry.tracing import past_span
from runners.telemetry.watchdog import Watchdog
from runners.transport.messages import EncodedImage, Failed

logger = logging.getLogger(__name__)


class EncoderWorker:
    """Encodes batches for one model; its features (N, C), float32, lie on `features_device`."""

    def __init__(self, manifest: Manifest, options: RunnerOptions, features_device: Device) -> None:
        self._manifest = manifest
        self._options = options
        self._features_device = features_device
        self.watchdog = Watchdog(f"the encoder of {manifest.model_id}", options.limits.stuck_after_s)

    def load(self, folder: Path, num_cores: int) -> None:
        """Load the graph and encode one black image."""
        options, manifest = self._options, self._manifest
        device = encoder_device(options.device)
        precision = choose_precision(manifest, "encoder", device, options.encoder_precision)
        threads = num_threads(options.encoder_threads, manifest.hidden_size, num_cores)
        self._encoder = VisionEncoder(folder, threads, precision, device)
        self._encoder.load()
        width, height = manifest.image_size_wh
        self._encoder.encode(np.zeros((1, height, width, 3), dtype=np.uint8))

    def encode(self, batch: Sequence[Encoding]) -> list[EncodedImage]:
        """Set the features of each image; where the session raises for several, each is tried alone."""
        BATCH_SIZE.labels(self._manifest.model_id, "encode").observe(len(batch))
        start_s = time.monotonic()
        with self.watchdog.turn():
            failures = self._encode(batch)
        encode_s = time.monotonic() - start_s
        for encoding in batch:
            past_span("encode_queue", encoding.since_s, start_s, parent=encoding.trace)
            size = {"diptych.batch_size": len(batch)}
            past_span("encode_batch", start_s, start_s + encode_s, size, encoding.trace)
        return [EncodedImage(encode_s=encode_s, failed=failed) for failed in failures]

    def _encode(self, batch: Sequence[Encoding]) -> list[Failed | None]:
        try:
            # A lone image is read where it lies.
            pixels = batch[0].pixels[np.newaxis] if len(batch) == 1 else np.stack([each.pixels for each in batch])
            features = self._encoder.encode(pixels)
        except Exception as error:  # whatever the session raised reaches the calls whose images caused it
            if len(batch) == 1:
                logger.exception("the encoder of %s failed for an image", self._manifest.model_id)
                return [Failed(code="internal", message=f"the vision encoder failed: {type(error).__name__}")]
            logger.warning("a batch of %d images failed, encoding each alone: %r", len(batch), error)
            return [failed for encoding in batch for failed in self._encode([encoding])]
        for encoding, row in zip(batch, features, strict=True):
            # A row of its own, lest one cached image keeps the features of its whole batch.
            own = torch.from_numpy(row if len(batch) == 1 else row.copy())
            encoding.features = own.to(self._features_device)
        return [None] * len(batch)
