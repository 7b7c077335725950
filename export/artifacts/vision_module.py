"""The vision encoder as one torch module: resized uint8 pixels in, projected image features out.

Includes the normalisation of the checkpoint's image processor, but not the resizing.
Shapes: B batch, H and W image size, N image tokens, C hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import SourceError

_STEPS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "do_pad": False,
}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The preprocessing of a checkpoint's images."""

    size_wh: tuple[int, int]
    resample: int  # PIL's number of the filter
    rescale_factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_image_input(image_processor: Any) -> ImageInput:
    """Read transformers' settings; raise `SourceError` if a step is unsupported."""
    size = dict(image_processor.size)
    steps = {step: bool(getattr(image_processor, step, False)) for step in _STEPS}
    if steps != _STEPS or not {"height", "width"} <= size.keys():
        raise SourceError(
            f"the image processor has size {size} and {steps}; allowed: a height and a width, and"
            f" {_STEPS}"
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
        self.config = model.config  # read by optimum
        self._model = model.model
        mean = torch.tensor(image_input.mean)[:, None, None] / image_input.rescale_factor
        std = torch.tensor(image_input.std)[:, None, None] / image_input.rescale_factor
        self._mean = nn.Buffer(mean, persistent=False)  # (3, 1, 1)
        self._std = nn.Buffer(std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image features (B, N, C) of uint8 `pixels` (B, H, W, 3)."""
        # Channels first: ONNX Runtime subtracts and divides many times as slowly over a last axis
        # of three.
        pixel_values = (pixels.permute(0, 3, 1, 2).float() - self._mean) / self._std
        features: Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features
