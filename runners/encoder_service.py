"""The BentoML service of one model's vision encoder: adaptive batching in front of ONNX Runtime."""

import time
from dataclasses import dataclass
from typing import Any

import bentoml
import numpy as np

from runners.artifacts import read_manifest, verify_files
from runners.messages import Array, EncodedImage
from runners.metrics import BATCH_SIZE
from runners.model_store import artifact_folder
from runners.vision_encoder import VisionEncoder

NO_ACCESS_LOG = {"access": {"enabled": False}}  # the gateway writes the one line of a request


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """How an encoder service batches."""

    max_batch_size: int  # images
    max_latency_ms: int  # BentoML drops a request that it expects to take longer
    num_threads: int  # of ONNX Runtime
    timeout_s: int


def make_encoder_service(model_id: str, options: EncoderOptions) -> Any:
    """Return the encoder service of one model."""

    class Encoder:
        """Turns resized images into image features."""

        @bentoml.on_startup
        def load(self) -> None:
            """Check and load the artifacts, and encode one batch for real: only then is the service ready."""
            folder = artifact_folder(model_id)
            manifest = read_manifest(folder)
            verify_files(folder, manifest)
            self._encoder = VisionEncoder(folder, options.num_threads)
            self._encoder.load()
            width, height = manifest.image_size_wh
            self._encoder.encode(np.zeros((1, height, width, 3), dtype=np.uint8))

        @bentoml.api(batchable=True, max_batch_size=options.max_batch_size, max_latency_ms=options.max_latency_ms)
        def encode(self, images: list[Array]) -> list[EncodedImage]:
            """Return image features (N, C) for each of the images, uint8 RGB (H, W, 3)."""
            start_s = time.monotonic()
            BATCH_SIZE.labels(model_id, "encode").observe(len(images))
            features = self._encoder.encode(np.stack([image.numpy() for image in images]))
            encode_s = time.monotonic() - start_s
            return [EncodedImage(image_features=Array.of(item), encode_s=encode_s) for item in features]

    service = bentoml.service(name=f"{model_id}-encoder", logging=NO_ACCESS_LOG, traffic={"timeout": options.timeout_s})
    return service(Encoder)
