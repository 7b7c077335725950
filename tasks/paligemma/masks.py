"""PaliGemma's mask decoder: 16 tokens to a 64 x 64 field, 1 inside and -1 outside.

It is the decoder of a vector-quantised autoencoder (Ning et al., arXiv 2301.02229), here in numpy
alone. Architecture and tensor names: google-research/big_vision@5f95305,
big_vision/evaluators/proj/paligemma/transfers/segmentation.py, and the released file vae-oid.npz.

Shapes: H and W height and width, C channels in, O channels out.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import contourpy
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tasks.errors import CheckpointFileError
from tasks.results import BoxXyxy, Ring, RunLengthMask
from tasks.run_length import encode_edges

NUM_CODES = 16
FIELD_SIDE = 64

Floats = NDArray[np.float32]

_GRID_SIDE = 4  # codes per side before the upsampling
_RESIDUAL_BLOCKS = ("decoder.2.net", "decoder.3.net")
_UPSAMPLINGS = ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
_WEIGHT_SHAPES: dict[str, tuple[int, ...]] = {
    "decoder.0": (128, 512, 1, 1),
    "decoder.4": (128, 128, 4, 4),  # transposed convolutions: in before out
    "decoder.6": (128, 64, 4, 4),
    "decoder.8": (64, 32, 4, 4),
    "decoder.10": (32, 16, 4, 4),
    "decoder.12": (1, 16, 1, 1),
}
for _block in _RESIDUAL_BLOCKS:
    _WEIGHT_SHAPES |= dict.fromkeys((f"{_block}.0", f"{_block}.2"), (128, 128, 3, 3))
    _WEIGHT_SHAPES[f"{_block}.4"] = (128, 128, 1, 1)
# taps through which an output of a transposed convolution sees its two inputs, by phase
_TAPS = ([3, 1], [2, 0])
_CODEBOOK = "_vq_vae._embedding"
_CODEBOOK_SHAPE = (128, 512)


@dataclass(frozen=True, slots=True)
class MaskDecoder:
    """The codebook and the convolutions, as matrices for patches whose channels come last."""

    codebook: Floats  # (128, 512)
    # layer -> (C * taps, O); transposed convolutions -> (4 phases, C * 4 taps, O)
    matrices: Mapping[str, Floats]
    biases: Mapping[str, Floats]  # layer -> (O,)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an `.npz` of the layout of vae-oid.npz; raise `CheckpointFileError`."""
        tensors = _read_tensors(path)
        matrices: dict[str, Floats] = {}
        biases: dict[str, Floats] = {}
        for layer in _WEIGHT_SHAPES:
            biases[layer] = tensors[f"{layer}.bias"]
            weight = tensors[f"{layer}.weight"]
            if layer in _UPSAMPLINGS:  # (C, O, 4, 4)
                taps = [weight[:, :, _TAPS[p]][:, :, :, _TAPS[q]] for p, q in np.ndindex(2, 2)]
                matrices[layer] = np.stack([_matrix(phase.swapaxes(0, 1)) for phase in taps])
            else:
                matrices[layer] = _matrix(weight)
        return cls(tensors[_CODEBOOK], matrices, biases)

    def decode(self, codes: Sequence[int]) -> Floats:
        """Return the field (64, 64) of 16 codes, each 0 to 127, row by row."""
        grid = self.codebook[np.asarray(codes)].reshape(_GRID_SIDE, _GRID_SIDE, -1)
        x = _relu(self._convolve(grid, "decoder.0"))
        for block in _RESIDUAL_BLOCKS:
            inner = _relu(self._convolve(_patches(x, 3), f"{block}.0"))
            inner = _relu(self._convolve(_patches(inner, 3), f"{block}.2"))
            x = x + self._convolve(inner, f"{block}.4")
        for layer in _UPSAMPLINGS:
            x = _relu(self._upsample(x, layer))
        return self._convolve(x, "decoder.12")[:, :, 0]

    def _convolve(self, patches: Floats, layer: str) -> Floats:
        """Apply a convolution to patches (H, W, C * taps)."""
        return patches @ self.matrices[layer] + self.biases[layer]

    def _upsample(self, x: Floats, layer: str) -> Floats:
        """Apply a transposed convolution (kernel 4, stride 2, padding 1): (H, W, C) -> (2H, 2W, O).

        Output row 2m + p sees input rows m + p - 1 and m + p only, columns likewise: four phases,
        each a convolution of 2 x 2.
        """
        height, width, _ = x.shape
        windows = _patches(x, 2)  # (H + 1, W + 1, C * 4)
        phases = [
            windows[row : row + height, column : column + width] @ matrix
            for (row, column), matrix in zip(np.ndindex(2, 2), self.matrices[layer], strict=True)
        ]
        grid = np.stack(phases, axis=2).reshape(height, width, 2, 2, -1)
        return grid.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1) + self.biases[layer]


def _read_tensors(path: Path) -> dict[str, Floats]:
    expected: dict[str, tuple[int, ...]] = {_CODEBOOK: _CODEBOOK_SHAPE}
    for layer, shape in _WEIGHT_SHAPES.items():
        expected[f"{layer}.weight"] = shape
        expected[f"{layer}.bias"] = (shape[1] if layer in _UPSAMPLINGS else shape[0],)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            present = {name: np.asarray(archive[name]) for name in expected.keys() & archive.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointFileError(f"{path} cannot be read as an .npz of arrays: {error}") from error
    for name, shape in expected.items():
        if name not in present:
            raise CheckpointFileError(f"{path} has no array {name} of shape {shape}")
        if present[name].shape != shape or not np.isfinite(present[name]).all():
            problem = f"must be finite, of shape {shape}; its shape is {present[name].shape}"
            raise CheckpointFileError(f"{path}: {name} {problem}")
    return {name: array.astype(np.float32) for name, array in present.items()}


def _matrix(weight: Floats) -> Floats:
    """Turn a convolution's weight (O, C, kH, kW) into (C * kH * kW, O)."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def _patches(x: Floats, side: int) -> Floats:
    """Return the `side` x `side` windows of x with a zero border: (H', W', C * side²)."""
    windows = sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (side, side), axis=(0, 1))
    return windows.reshape(*windows.shape[:2], -1)


def _relu(x: Floats) -> Floats:
    return x.clip(min=0)


def mask_in_image(
    field: Floats, box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]
) -> RunLengthMask:
    """Return the mask of pixels whose centre is in the box and has a field above 0.

    In a column of pixels the field is linear between two of its 64 samples: the ends of runs are
    computed, no pixels, and time and memory are those of the columns of the box.
    """
    x1, y1, x2, y2 = box_xyxy
    width, height = image_size_wh
    rows = _pixels_between(y1, y2, height)
    columns = _pixels_between(x1, x2, width)
    samples = np.pad(_interpolation(columns, x1, x2) @ field.T, ((0, 0), (1, 1)))  # (columns, 66)
    column, gap = np.nonzero((samples[:, 1:] > 0) != (samples[:, :-1] > 0))
    before = samples[column, gap]
    after = samples[column, gap + 1]
    # Zeros beside the samples make a change there one at the border, or beyond it.
    zero = gap - 0.5 + before / (before - after)  # in samples, from the first one's start
    y = y1 + zero * (y2 - y1) / FIELD_SIDE - 0.5
    row = np.where(after > 0, np.floor(y) + 1, np.ceil(y))
    row = np.where(gap == 0, rows.start, np.where(gap == FIELD_SIDE, rows.stop, row))
    places = (column + columns.start) * height + row.clip(rows.start, rows.stop)
    return encode_edges(places.astype(np.intp), image_size_wh)


def rings_in_box(field: Floats, box_xyxy: BoxXyxy) -> tuple[Ring, ...]:
    """Return the outlines of where the field is above 0, in pixels of the image.

    Outer rings run clockwise as seen on the screen, rings of holes anticlockwise; the even-odd rule
    gives the mask.
    """
    x1, y1, x2, y2 = box_xyxy
    # Beyond the last samples the field is constant up to the border of the box; a negative sample
    # on the border itself closes a ring that reaches it.
    closed = np.pad(np.pad(field, 1, mode="edge"), 1, constant_values=-1)
    end = [FIELD_SIDE, FIELD_SIDE]
    places = np.concatenate(([0, 0], np.arange(0.5, FIELD_SIDE), end)) / FIELD_SIDE
    xs = x1 + places * (x2 - x1)
    ys = y1 + places * (y2 - y1)
    generator = contourpy.contour_generator(xs, ys, closed, line_type=contourpy.LineType.Separate)
    rings: list[Ring] = []
    for points in generator.lines(0.0):
        # rounding in contourpy's sum of two shares puts points of the border beyond it
        line = np.clip(np.asarray(points), (x1, y1), (x2, y2))
        # each point once where neighbours are equal; the last one is the first again
        moves = np.any(line[1:] != line[:-1], axis=1)
        ring = tuple((float(x), float(y)) for x, y in line[1:][moves])
        if len(ring) > 2:
            rings.append(ring)
    return tuple(rings)


def _pixels_between(start_px: float, end_px: float, side_px: int) -> range:
    """Return the pixels whose centres lie from `start_px` to before `end_px`."""
    return range(max(0, int(np.ceil(start_px - 0.5))), min(side_px, int(np.ceil(end_px - 0.5))))


def _interpolation(pixels: range, start_px: float, end_px: float) -> Floats:
    """Return the weights (pixels, 64) of the samples at each pixel of a side of the box."""
    places = (np.asarray(pixels) + 0.5 - start_px) * FIELD_SIDE / (end_px - start_px) - 0.5
    distances = np.abs(places.clip(0, FIELD_SIDE - 1)[:, None] - np.arange(FIELD_SIDE))
    # a sample's weight is 0 from its neighbours on
    weights: Floats = (1 - distances).clip(min=0).astype(np.float32)
    return weights
