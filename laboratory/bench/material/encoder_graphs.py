"""The vision encoder and projector as torch exports them without further work, for a peer that runs
ONNX Runtime.

    pixel_values float32 (batch_size, 3, H, W) -> image_features float32 (batch_size, N, C)

The graphs of `python -m export` take `uint8` pixels and normalise them; their Florence-2 encoder is
rewritten.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.artifacts.encoders import load_vision_model
from export.checks.reference import load_processor


class ImageFeatures(nn.Module):
    """The part of a transformers model that encodes images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model.model
        self._model.vision_tower.set_attn_implementation("sdpa")  # transformers' default

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return (B, N, C)."""
        features: Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features


def write_encoder_graph(checkpoint: Path, file: Path) -> None:
    """Export the encoder in float32, unless `file` is newer; only the batch is dynamic."""
    if file.exists() and file.stat().st_mtime > max(
        each.stat().st_mtime for each in checkpoint.glob("*.safetensors")
    ):
        return
    size = dict(load_processor(checkpoint).image_processor.size)
    # a batch of one would be traced as a constant
    pixel_values = torch.zeros(2, 3, size["height"], size["width"])
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        # Sizes are fixed, so Python values that depend on them may be traced as constants.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # torch 2.13 calls tracing deprecated
        warnings.simplefilter("ignore", category=DeprecationWarning)
        torch.onnx.export(
            ImageFeatures(load_vision_model(checkpoint)).eval(),
            (pixel_values,),
            file,
            input_names=["pixel_values"],
            output_names=["image_features"],
            dynamic_axes={"pixel_values": {0: "batch_size"}, "image_features": {0: "batch_size"}},
            dynamo=False,
        )
