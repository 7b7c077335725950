"""The vector-quantised autoencoder of PaliGemma's masks: 64 x 64 to 16 codes of 128, and back.

Architecture and tensor names are those of the released vae-oid.npz. Sources:
SwinTransformer/AiT@ca2c2d1 vae/models/VQVAE.py (Ning et al., arXiv 2301.02229), the released model;
google-research/big_vision@5f95305, big_vision/pp/proj/paligemma/segmentation.py (encoder) and
big_vision/evaluators/proj/paligemma/transfers/segmentation.py (decoder), which load its file.

Shapes: B batch, N = 16 codes, row by row of a 4 x 4 grid, D = 512 numbers per code, C channels.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CODEBOOK_SIZE = 128

_GRID_SIDE = 4
_CODE_DIM = 512
_NUM_RESIDUAL_BLOCKS = 2
_ENCODER_CHANNELS = (1, 16, 32, 64, 128)
_DECODER_CHANNELS = (128, 128, 64, 32, 16)
_DECAY = 0.95
_NUM_CLUSTERING_ROUNDS = 8
_TRAINING_ONLY = ("_vq_vae._ema_cluster_size",)  # needed neither to encode nor to decode


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a 1 x 1 one, added to their input."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(num_channels, num_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(num_channels, num_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of x (B, C, H, W) and its residual."""
        residual: Tensor = self.net(x)
        return x + residual


class Codebook(nn.Module):
    """The rows of the codes: each is the moving average of the features nearest to it."""

    _embedding: Tensor  # (128, D)
    _ema_cluster_size: Tensor  # (128,): moving average of the number of nearest features per batch

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_embedding", torch.zeros(CODEBOOK_SIZE, _CODE_DIM))
        self.register_buffer("_ema_cluster_size", torch.zeros(CODEBOOK_SIZE))

    def nearest(self, features: Tensor) -> Tensor:
        """Return the codes (...) of the rows nearest to features (..., D)."""
        # |f - e|² without |f|², which is the same for all rows
        distances = self._embedding.square().sum(1) - 2 * features @ self._embedding.T
        return distances.argmin(-1)

    def rows(self, codes: Tensor) -> Tensor:
        """Return the rows (..., D) of codes (...)."""
        return self._embedding[codes]

    @torch.no_grad()
    def follow(self, features: Tensor, codes: Tensor) -> None:
        """Move the rows of `codes` (M,) towards their `features` (M, D)."""
        sums = torch.zeros_like(self._embedding).index_add_(0, codes, features)
        counts = torch.bincount(codes, minlength=CODEBOOK_SIZE).float()
        old_weights = _DECAY * self._ema_cluster_size
        self._ema_cluster_size.copy_(old_weights + (1 - _DECAY) * counts)
        total = old_weights[:, None] * self._embedding + (1 - _DECAY) * sums
        self._embedding.copy_(total / self._ema_cluster_size.clamp(min=1e-6)[:, None])

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Initialise the rows by k-means over `features` (M, D), M >= 128, from the first."""
        self._embedding.copy_(features[:CODEBOOK_SIZE])
        for _ in range(_NUM_CLUSTERING_ROUNDS):
            codes = self.nearest(features)
            counts = torch.bincount(codes, minlength=CODEBOOK_SIZE)[:, None]
            sums = torch.zeros_like(self._embedding).index_add_(0, codes, features)
            self._embedding.copy_(
                torch.where(counts > 0, sums / counts.clamp(min=1), self._embedding)
            )
        self._ema_cluster_size.fill_(1.0)

    @torch.no_grad()
    def restart(self, features: Tensor, min_cluster_size: float) -> None:
        """Replace rows under `min_cluster_size` per batch by `features` (M, D), in order."""
        dead = (self._ema_cluster_size < min_cluster_size).nonzero()[: len(features), 0]
        self._embedding[dead] = features[: len(dead)]
        self._ema_cluster_size[dead] = 1.0


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """The results of encoding and decoding a batch of masks."""

    fields: Tensor  # (B, 64, 64)
    features: Tensor  # (B, N, D), of the encoder
    codes: Tensor  # (B, N)
    commitment_loss: Tensor  # scalar: squared distance of the features from their rows


class MaskAutoencoder(nn.Module):
    """Encoder, codebook and decoder; masks (B, 1, 64, 64) are pixel coverages, 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self._vq_vae = Codebook()
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(_ENCODER_CHANNELS):
            layers += nn.Conv2d(num_in, num_out, 4, stride=2, padding=1), nn.ReLU()
        layers += [ResidualBlock(num_out) for _ in range(_NUM_RESIDUAL_BLOCKS)]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(num_out, _CODE_DIM, 1))
        width = _DECODER_CHANNELS[0]
        layers = [nn.Conv2d(_CODE_DIM, width, 1), nn.ReLU()]
        layers += [ResidualBlock(width) for _ in range(_NUM_RESIDUAL_BLOCKS)]
        for num_in, num_out in pairwise(_DECODER_CHANNELS):
            layers += nn.ConvTranspose2d(num_in, num_out, 4, stride=2, padding=1), nn.ReLU()
        self.decoder = nn.Sequential(*layers, nn.Conv2d(num_out, 1, 1))

    @property
    def codebook(self) -> Codebook:
        """The codebook; its attribute has the released file's name."""
        return self._vq_vae

    def features(self, masks: Tensor) -> Tensor:
        """Return the encoder's features (B, N, D) of masks (B, 1, 64, 64)."""
        grid: Tensor = self.encoder(2 * masks - 1)  # (B, D, 4, 4)
        # Back as a grid, this is channels last, which is faster.
        return grid.flatten(2).transpose(1, 2).contiguous()

    def fields(self, features: Tensor) -> Tensor:
        """Return the fields (B, 64, 64) of features or rows (B, N, D)."""
        grid = features.transpose(1, 2).reshape(-1, _CODE_DIM, _GRID_SIDE, _GRID_SIDE)
        fields: Tensor = self.decoder(grid)
        return fields[:, 0]

    def forward(self, masks: Tensor) -> Reconstruction:
        """Encode, quantise (straight-through gradients) and decode."""
        features = self.features(masks)
        codes = self.codebook.nearest(features)
        rows = self.codebook.rows(codes)
        fields = self.fields(features + (rows - features).detach())
        return Reconstruction(fields, features, codes, functional.mse_loss(features, rows))

    @torch.inference_mode()
    def encode(self, masks: Tensor) -> Tensor:
        """Return the codes (B, N), each 0 to 127, of masks (B, 1, 64, 64)."""
        return self.codebook.nearest(self.features(masks))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the fields (B, 64, 64) of codes (B, N): about 1 inside objects, -1 outside."""
        return self.fields(self.codebook.rows(codes))

    def save_npz(self, path: Path) -> None:
        """Write the tensors of the released file, with its names, in half precision."""
        state = {
            name: tensor for name, tensor in self.state_dict().items() if name not in _TRAINING_ONLY
        }
        with path.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                **{n: t.cpu().numpy().astype(np.float16) for n, t in state.items()},
            )

    @classmethod
    def load_npz(cls, path: Path) -> Self:
        """Load a file of `save_npz` for encoding and decoding."""
        with np.load(path, allow_pickle=False) as archive:
            state = {name: torch.from_numpy(archive[name]).float() for name in archive.files}
        autoencoder = cls()
        autoencoder.load_state_dict(
            state | {name: autoencoder.state_dict()[name] for name in _TRAINING_ONLY}
        )
        return autoencoder.eval()
