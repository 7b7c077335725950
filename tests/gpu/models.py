"""A model's encoder and decoder on a device, and images and requests for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.scenes import render_scene, sample_scene
from runners.adapters.low_rank import Adapters
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import Encoder, load_encoder
from runners.model_worker import to_request
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tests.support.export_cli import ROOT
from wire.artifacts.manifest import Device, Manifest, Precision, read_manifest
from wire.artifacts.model_store import artifact_folder
from wire.runner_messages import SequenceSpec

_WORDS = "What does the image show, and where are its objects and texts: on the left or the right?"
_TIMEOUT_S = 300.0
_LONG_PROMPT = 100
_MAX_PREFILL_TOKENS = 16384
_MAX_POSITIONS = 2048  # positions of a slot: the scenarios use few


@dataclass(frozen=True, slots=True)
class Model:
    """The stored artifacts of a model."""

    folder: Path
    manifest: Manifest

    @classmethod
    def of(cls, model_id: str) -> "Model":
        """Return the newest artifacts in BENTOML_HOME; those of random weights are made there."""
        if model_id.endswith("-random"):
            from laboratory.bench.material import RANDOM_MODELS, make_model  # imports transformers

            make_model(ROOT / "build/gpu-check" / model_id, RANDOM_MODELS[model_id])
        folder = artifact_folder(model_id)
        return cls(folder, read_manifest(folder))

    def encoder(self, device: Device = "cuda", precision: Precision | None = None) -> Encoder:
        """Load the encoder, by default in the device's precision."""
        precision = precision or self.manifest.precision[device]["encoder"]
        return load_encoder(self.folder, 0, precision, device)

    def decoder(
        self,
        device: Device = "cuda",
        precision: Precision | None = None,
        adapters: Adapters | None = None,
    ) -> Decoder:
        """Load the decoder, by default in the device's precision."""
        manifest = self.manifest
        precision = precision or manifest.precision[device]["decoder"]
        return load_decoder(
            self.folder,
            manifest.family,
            precision,
            device,
            _MAX_POSITIONS,
            adapters=adapters,
            num_image_tokens=manifest.num_image_tokens,
        )

    def images(self, num: int) -> NDArray[np.uint8]:
        """Return rendered scenes (num, H, W, 3) of the input size."""
        size_px, _ = self.manifest.image_size_wh  # squares
        scenes = [render_scene(sample_scene(seed), size_px) for seed in range(num)]
        return np.stack([np.asarray(scene) for scene in scenes])

    def features(self) -> Tensor:
        """Return features (N, C) that need no encoder."""
        size = self.manifest.num_image_tokens, self.manifest.hidden_size
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to("cuda")


def requests(
    decoder: Decoder, features: Sequence[Tensor], num_tokens: int, **options: Any
) -> list[SequenceRequest]:
    """Return a request for each of `features`, with prompts of different lengths."""
    batch = []
    options |= {"max_new_tokens": num_tokens, "timeout_s": _TIMEOUT_S}
    for index, image_features in enumerate(features):
        segments = [(_WORDS[: 20 + 7 * index % 60], False)]
        spec = SequenceSpec(segments=segments, **options)
        batch.append(to_request(decoder, image_features, spec))
    return batch


def with_long_prompt(request: SequenceRequest) -> SequenceRequest:
    """Return a request whose prompt is too long for a captured prefill."""
    return replace(request, prompt_ids=(request.prompt_ids * _LONG_PROMPT)[:_LONG_PROMPT])


@contextmanager
def scheduler(decoder: Decoder, num_slots: int) -> Iterator[Scheduler]:
    """Run a scheduler over `decoder`."""
    limits = SchedulerLimits(num_slots, 4 * num_slots, max_prefill_tokens=_MAX_PREFILL_TOKENS)
    running = Scheduler(decoder, "gpu test", limits)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def write(running: Scheduler, batch: Sequence[SequenceRequest]) -> list[GeneratedSequence]:
    """Generate all requests together."""
    return [future.result(_TIMEOUT_S).sequence for future in running.submit(batch)]
