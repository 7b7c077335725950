"""Initial weights: scaled by fan-in, with location embeddings that are smooth along the axis."""

import math

import torch
from torch import Tensor, nn

from laboratory.training.models.trainee import Trainee

_DEPTHWISE_GAIN = 0.3
_QUIET_GAIN = 0.1
_EMBEDDING_NORM = 1.2
_POSITION_STD = 0.05
_SMOOTH_DIMENSIONS = 32
_WAVELENGTHS = (24.0, 2000.0)  # bins


@torch.no_grad()
def initialize(trainee: Trainee) -> None:
    """Initialise every weight of a model from torch's random generator."""
    embeddings = trainee.embeddings
    location_ids = trainee.location_ids
    for module in trainee.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = _DEPTHWISE_GAIN if getattr(module, "groups", 1) > 1 else 1.0
            module.weight.normal_(0, gain / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, _POSITION_STD)
    size = embeddings.shape[1]
    embeddings.normal_(0, _EMBEDDING_NORM / math.sqrt(size))
    embeddings[location_ids] = smooth_embeddings(len(location_ids), size, 1.0)
    for layer in trainee.quiet_layers:
        layer.weight.mul_(_QUIET_GAIN)
    # rows and columns of cells, in bins
    for table in trainee.position_tables:
        bins_apart = len(location_ids) / trainee.size.grid
        table.copy_(smooth_embeddings(len(table), table.shape[1], bins_apart))


def smooth_embeddings(num: int, size: int, bins_apart: float) -> Tensor:
    """Return (num, size): sines and cosines in a random subspace; neighbours are similar."""
    shortest, longest = map(math.log, _WAVELENGTHS)
    wavelengths = torch.linspace(shortest, longest, _SMOOTH_DIMENSIONS // 2).exp()
    phases = 2 * math.pi * torch.arange(num)[:, None] * bins_apart / wavelengths
    # (num, _SMOOTH_DIMENSIONS), norm sqrt(dimensions / 2)
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    basis, _ = torch.linalg.qr(torch.randn(size, _SMOOTH_DIMENSIONS))
    embeddings: Tensor = waves @ basis.T * (_EMBEDDING_NORM / math.sqrt(_SMOOTH_DIMENSIONS / 2))
    return embeddings
