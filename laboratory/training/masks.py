"""The vector-quantised autoencoder of PaliGemma's masks: 64 x 64 to 16 codes of 128, and back; and
its training from scratch on random masks.

Architecture and tensor names are those of the released vae-oid.npz. Sources:
SwinTransformer/AiT@ca2c2d1 vae/models/VQVAE.py (Ning et al., arXiv 2301.02229), the released model;
google-research/big_vision@5f95305, big_vision/pp/proj/paligemma/segmentation.py (encoder) and
big_vision/evaluators/proj/paligemma/transfers/segmentation.py (decoder), which load its file.

In the first steps the decoder receives the features themselves; then the codebook is fitted to them
(k-means) and follows them as a moving average. Rarely used rows are replaced by random features,
except in the last steps.

Shapes: B batch, N = 16 codes, row by row of a 4 x 4 grid, D = 512 numbers per code, C channels.
"""

from itertools import pairwise
from math import cos, pi, sin
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from tqdm import tqdm

from export.scenes import SHAPES, Point, Ring, SceneObject, Shape, outline_xy, ring_box_xyxy
from laboratory.training.loop import Muon, cosine_factor, descend, set_rates

Masks = NDArray[np.float32]

MASK_SIDE = 64
CODEBOOK_SIZE = 128
_GRID_SIDE = 4
_CODE_DIM = 512
_NUM_RESIDUAL_BLOCKS = 2
_ENCODER_CHANNELS = (1, 16, 32, 64, 128)
_DECODER_CHANNELS = (128, 128, 64, 32, 16)
_DECAY = 0.95
_CLUSTER_SIZE = "_vq_vae._ema_cluster_size"  # needed neither to encode nor to decode

_FINE_SIDE = 4 * MASK_SIDE  # of a drawn mask
_KINDS = ("shape", "turned shape", "blob", "hole", "cut")
_SHARES = (0.15, 0.3, 0.25, 0.1, 0.2)

NUM_STEPS = 900
_NUM_MASKS = 32  # per step
_MUON_RATE = 0.02
_ADAM_RATE = 2e-3
_WARM_UP_SHARE = 1 / 30  # of the steps, like the next three
_FLAT_SHARE = 0.3  # before cosine down to `_FINAL_RATE`
_UNQUANTISED_SHARE = 0.08  # quantising from the start leaves most rows unused
_RESTART_SHARE = 0.8
_FINAL_RATE = 0.02
_COMMITMENT_WEIGHT = 0.25
_MAX_GRADIENT_NORM = 1.0
_RESTART_EVERY = 10
_MIN_CLUSTER_SIZE = 0.4  # features of a step's 512; 4 on average
_NUM_CLUSTERED_MASKS = 256
_NUM_HELD_OUT = 256
_HELD_OUT_SEED = 2**32  # no step has this number


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
        for _ in range(8):
            codes = self.nearest(features)
            counts = torch.bincount(codes, minlength=CODEBOOK_SIZE)[:, None]
            sums = torch.zeros_like(self._embedding).index_add_(0, codes, features)
            means = sums / counts.clamp(min=1)
            self._embedding.copy_(torch.where(counts > 0, means, self._embedding))
        self._ema_cluster_size.fill_(1.0)

    @torch.no_grad()
    def restart(self, features: Tensor, min_cluster_size: float) -> None:
        """Replace rows under `min_cluster_size` per batch by `features` (M, D), in order."""
        dead = (self._ema_cluster_size < min_cluster_size).nonzero()[: len(features), 0]
        self._embedding[dead] = features[: len(dead)]
        self._ema_cluster_size[dead] = 1.0


class MaskAutoencoder(nn.Module):
    """Encoder, codebook and decoder; masks (B, 1, 64, 64) are pixel coverages, 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self._vq_vae = Codebook()  # the released file's name
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
        return self._vq_vae

    def features(self, masks: Tensor) -> Tensor:
        """Return the encoder's features (B, N, D) of masks (B, 1, 64, 64)."""
        grid: Tensor = self.encoder(2 * masks - 1)  # (B, D, 4, 4)
        # Back as a grid, this is channels last, which is faster.
        return grid.flatten(2).transpose(1, 2).contiguous()

    def fields(self, features: Tensor) -> Tensor:
        """Return the fields (B, 64, 64) of features or rows (B, N, D): about 1 inside, -1 out."""
        grid = features.transpose(1, 2).reshape(-1, _CODE_DIM, _GRID_SIDE, _GRID_SIDE)
        fields: Tensor = self.decoder(grid)
        return fields[:, 0]

    @torch.inference_mode()
    def encode(self, masks: Tensor) -> Tensor:
        """Return the codes (B, N), each 0 to 127, of masks (B, 1, 64, 64)."""
        return self.codebook.nearest(self.features(masks))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the fields (B, 64, 64) of codes (B, N)."""
        return self.fields(self.codebook.rows(codes))

    def shape_codes(self, shape: Shape) -> tuple[int, ...]:
        """Return the 16 codes of a scene's shape."""
        return tuple(self.encode(torch.from_numpy(shape_mask(shape))[None, None])[0].tolist())

    def save_npz(self, path: Path) -> None:
        """Write the tensors of the released file, with its names, in half precision."""
        arrays = {}
        for name, tensor in self.state_dict().items():
            if name != _CLUSTER_SIZE:
                arrays[name] = tensor.cpu().numpy().astype(np.float16)
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load_npz(cls, path: Path) -> Self:
        """Load a file of `save_npz` for encoding and decoding."""
        autoencoder = cls()
        state = autoencoder.state_dict()
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                state[name] = torch.from_numpy(archive[name]).float()
        autoencoder.load_state_dict(state)
        return autoencoder.eval()


def train_mask_autoencoder(
    out: Path, num_steps: int = NUM_STEPS, seed: int = 0, device: str = "cpu"
) -> float:
    """Train an autoencoder, write `out` and return the IoU on held-out masks."""
    torch.manual_seed(seed)
    autoencoder = MaskAutoencoder().to(device)
    parameters = list(autoencoder.parameters())
    matrices = [value for value in parameters if value.ndim == 4 and 1 not in value.shape[:2]]
    taken = set(map(id, matrices))
    others = [value for value in parameters if id(value) not in taken]
    optimizers = [
        Muon([{"params": matrices, "top": _MUON_RATE}]),
        Adam([{"params": others, "top": _ADAM_RATE}], betas=(0.9, 0.98)),
    ]
    for step in tqdm(range(num_steps), smoothing=0.05):
        progress = step / num_steps
        warm_up = min(1.0, (step + 1) / (_WARM_UP_SHARE * num_steps))
        set_rates(optimizers, warm_up * cosine_factor(progress, _FLAT_SHARE, _FINAL_RATE))
        rng = default_rng((seed, step))
        masks = torch.from_numpy(sample_masks(rng, _NUM_MASKS)).to(device)
        if step == int(_UNQUANTISED_SHARE * num_steps):
            clustered = torch.from_numpy(sample_masks(rng, _NUM_CLUSTERED_MASKS)).to(device)
            with torch.no_grad():
                features = autoencoder.features(clustered).flatten(0, 1)
            autoencoder.codebook.fit(features[torch.from_numpy(rng.permutation(len(features)))])
        loss = _loss(autoencoder, masks, step, num_steps, rng)
        descend(loss, [autoencoder], optimizers, _MAX_GRADIENT_NORM)
    autoencoder.save_npz(out)
    score = mean_iou(MaskAutoencoder.load_npz(out), held_out_masks())
    tqdm.write(f"{out}: IoU {score:.3f} on held-out masks")
    return score


def _loss(
    autoencoder: MaskAutoencoder, masks: Tensor, step: int, num_steps: int, rng: Generator
) -> Tensor:
    """Return the squared error to 1 inside and -1 outside; update the codebook."""
    target = 2 * masks[:, 0] - 1
    features = autoencoder.features(masks)
    if step < int(_UNQUANTISED_SHARE * num_steps):
        return functional.mse_loss(autoencoder.fields(features), target)
    codebook = autoencoder.codebook
    codes = codebook.nearest(features)
    rows = codebook.rows(codes)
    commitment = functional.mse_loss(features, rows)
    fields = autoencoder.fields(features + (rows - features).detach())  # straight-through
    flat = features.detach().flatten(0, 1)
    codebook.follow(flat, codes.flatten())
    if step % _RESTART_EVERY == 0 and step < _RESTART_SHARE * num_steps:
        order = torch.from_numpy(rng.permutation(len(flat)))
        codebook.restart(flat[order], _MIN_CLUSTER_SIZE)
    return functional.mse_loss(fields, target) + _COMMITMENT_WEIGHT * commitment


def held_out_masks() -> Tensor:
    """Return masks (B, 1, 64, 64) that no run is trained on."""
    return torch.from_numpy(sample_masks(default_rng(_HELD_OUT_SEED), _NUM_HELD_OUT))


def mean_iou(autoencoder: MaskAutoencoder, masks: Tensor) -> float:
    """Return the mean IoU of masks (B, 1, 64, 64) and their reconstructions."""
    reconstructed = autoencoder.decode(autoencoder.encode(masks)) > 0
    expected = masks[:, 0] > 0.5
    common = (reconstructed & expected).sum((1, 2))
    return (common / (reconstructed | expected).sum((1, 2))).mean().item()


def shape_mask(shape: Shape) -> Masks:
    """Return the mask (64, 64) of a scene's shape in its tight box: the coverage of each pixel."""
    return _cropped(_filled(_shape_ring(shape)))


def sample_masks(rng: Generator, num_masks: int) -> Masks:
    """Sample masks (B, 1, 64, 64), 0 outside to 1 inside: shapes, rotated and stretched ones,
    blobs, and masks with a hole or a cut.

    Each is cropped to its tight box and resized, as before encoding to segmentation tokens.
    """
    masks = []
    for kind in rng.choice(_KINDS, num_masks, p=_SHARES):
        ring_kind = rng.choice(_KINDS[:3]) if kind in ("hole", "cut") else kind
        ring = _blob_ring(rng)
        if ring_kind != "blob":
            ring = _shape_ring(SHAPES[rng.integers(len(SHAPES))])
        if ring_kind == "turned shape":
            stretch = rng.uniform(1, 2)
            angle = rng.uniform(0, 2 * pi)
            ring = tuple(_rotated((x * stretch, y), angle) for x, y in ring)
        image = _filled(ring)
        if kind == "hole":
            _cut_hole(image, _in_fine_box(ring), rng.uniform(0.3, 0.6))
        elif kind == "cut":
            _cut_side(image, rng)
        masks.append(_cropped(image))
    return np.stack(masks)[:, None]


def _cut_hole(image: Image.Image, outer: Ring, scale: float) -> None:
    """Cut a smaller copy of an outline out of its middle."""
    middle_x, middle_y = np.mean(outer, axis=0)
    inner = [
        (middle_x + scale * (x - middle_x), middle_y + scale * (y - middle_y)) for x, y in outer
    ]
    ImageDraw.Draw(image).polygon(inner, fill=0)


def _cut_side(image: Image.Image, rng: Generator) -> None:
    """Cut along a line, as another object or the image border does."""
    angle = rng.choice((0, 0.5, 1, 1.5)) * pi if rng.random() < 0.5 else rng.uniform(0, 2 * pi)
    offset = (0.5 - rng.uniform(0.05, 0.6)) * _FINE_SIDE
    # a rectangle that covers all beyond `offset` from the centre towards `angle`
    middle = _FINE_SIDE / 2
    far = 2.0 * _FINE_SIDE
    corners = ((offset, -far), (far, -far), (far, far), (offset, far))
    beyond = []
    for corner in corners:
        x, y = _rotated(corner, angle)
        beyond.append((middle + x, middle + y))
    ImageDraw.Draw(image).polygon(beyond, fill=0)


def _shape_ring(shape: Shape) -> Ring:
    return outline_xy(SceneObject("red", shape, "large", (0, 0, 0), (0.0, 0.0), 1.0))


def _rotated(point: Point, angle: float) -> Point:
    x, y = point
    return x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)


def _blob_ring(rng: Generator) -> Ring:
    """Sample a smooth outline: a circle whose log radius is a sum of random waves."""
    waves = np.arange(1, 6)
    sizes = rng.normal(0, 0.3, len(waves)) / np.sqrt(waves)
    phases = rng.uniform(0, 2 * pi, len(waves))
    angles = np.linspace(0, 2 * pi, 64, endpoint=False)
    radii = np.exp((sizes * np.sin(angles[:, None] * waves + phases)).sum(1))
    xs = (radii * np.cos(angles)).tolist()
    ys = (radii * np.sin(angles)).tolist()
    return tuple(zip(xs, ys, strict=True))


def _in_fine_box(ring: Ring) -> Ring:
    """Stretch the ring to the fine canvas; Pillow's pixel positions are indices, not centres."""
    left, top, right, bottom = ring_box_xyxy(ring)
    scale_x = _FINE_SIDE / (right - left)
    scale_y = _FINE_SIDE / (bottom - top)
    return tuple(((x - left) * scale_x - 0.5, (y - top) * scale_y - 0.5) for x, y in ring)


def _filled(ring: Ring) -> Image.Image:
    image = Image.new("L", (_FINE_SIDE, _FINE_SIDE))
    ImageDraw.Draw(image).polygon(_in_fine_box(ring), fill=255)
    return image


def _cropped(fine: Image.Image) -> Masks:
    small = fine.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX, box=fine.getbbox())
    return np.asarray(small, np.float32) / np.float32(255)
