"""How optimum's exporter writes a vision encoder of either family as ONNX.

    pixels uint8 (batch_size, H, W, 3) -> image_features float32 (batch_size, N, C)

optimum has no configuration for Florence-2 or PaliGemma; seen from here the two differ in nothing but their sizes.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.onnx import OnnxConfig, export
from optimum.utils import DummyInputGenerator, NormalizedConfig

from export.vision import VisionEncoderModule

_BATCH_AXIS = {0: "batch_size"}


class PixelsGenerator(DummyInputGenerator):  # type: ignore[misc]  # optimum has no types
    """Random pixels to trace the graph with; two images, so that no batch of one is baked in."""

    SUPPORTED_INPUT_NAMES = ("pixels",)

    def __init__(self, _task: str, _config: NormalizedConfig, width: int, height: int) -> None:
        self._shape = (2, height, width, 3)

    def generate(self, _name: str, framework: str = "pt", **_dtypes: str) -> Any:
        """Return pixels as optimum asks for them: a torch tensor ("pt") or a numpy array ("np")."""
        pixels = torch.randint(0, 256, self._shape, dtype=torch.uint8)
        return pixels if framework == "pt" else pixels.numpy()


class VisionEncoderOnnxConfig(OnnxConfig):  # type: ignore[misc]  # optimum has no types
    """Names and axes of the vision encoder's input and output; the batch axis is dynamic."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (PixelsGenerator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The resized pixels."""
        return {"pixels": _BATCH_AXIS}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The projected image features."""
        return {"image_features": _BATCH_AXIS}


def export_vision_encoder(module: VisionEncoderModule, size_wh: tuple[int, int], output: Path) -> None:
    """Write `module` to `output` for images of exactly `size_wh`."""
    width, height = size_wh
    config = VisionEncoderOnnxConfig(module.config)
    with warnings.catch_warnings():
        # Sizes are fixed, so Python values that depend on them may be traced as constants.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # optimum 2.3 exports by tracing, which torch 2.13 calls deprecated.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        export(module, config, output, input_shapes={"width": width, "height": height})
