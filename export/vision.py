"""The vision encoder as one module: resized uint8 pixels in, projected image features out.

Normalisation is part of it, from the checkpoint's own image processor. It does not resize.
Shapes: B batch, H and W image size, N image tokens, C hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import ImageProcessorError

_STEPS = ("do_resize", "do_rescale", "do_normalize")  # what service and graph do
_NO_STEPS = ("do_center_crop", "do_pad")  # what they do not


@dataclass(frozen=True, slots=True)
class ImageInput:
    """What an image must become before the vision tower sees it."""

    size_wh: tuple[int, int]
    resample: int  # PIL's number of the filter
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_image_input(image_processor: Any) -> ImageInput:
    """Read the steps of a transformers image processor; raise `ImageProcessorError` if one is not ours."""
    missing = [step for step in _STEPS if not getattr(image_processor, step, False)]
    extra = [step for step in _NO_STEPS if getattr(image_processor, step, False)]
    size = dict(image_processor.size)
    if missing or extra or not {"height", "width"} <= size.keys():
        raise ImageProcessorError(
            f"the image processor has size {size}, steps switched off: {missing}, unknown steps: {extra}; "
            "only resizing to one height and width, rescaling and normalising are possible"
        )
    return ImageInput(
        size_wh=(size["width"], size["height"]),
        resample=int(image_processor.resample),
        rescale_factor=image_processor.rescale_factor,
        mean=tuple(image_processor.image_mean),
        std=tuple(image_processor.image_std),
    )


class VisionEncoderModule(nn.Module):
    """Normalisation, vision tower and projector of a transformers model of either family."""

    def __init__(self, model: Any, image_input: ImageInput) -> None:
        super().__init__()
        self.config = model.config  # optimum's exporter looks for it
        self._model = model.model
        self._mean = nn.Buffer(_by_channel(image_input.mean) / image_input.rescale_factor, persistent=False)
        self._std = nn.Buffer(_by_channel(image_input.std) / image_input.rescale_factor, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image features (B, N, C) of uint8 `pixels` (B, H, W, 3)."""
        # Channels first: over a last axis of three ONNX Runtime subtracts and divides many times as slowly.
        pixel_values = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        features: Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features


def _by_channel(values: tuple[float, ...]) -> Tensor:
    """Return (3, 1, 1)."""
    return torch.tensor(values)[:, None, None]
