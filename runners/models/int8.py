"""A matrix of eight-bit integers for the CPU: weights rounded once, per output, what they multiply per row and call.

    weight = scale (out, 1) * integers (out, in)        states = scale (rows, 1) * integers (rows, in)

The product of the integers is exact and each row has its own scale, so that a sequence gets the same numbers whoever
else is in its batch, and a row of NaN spoils no other. torch's quantized.linear_dynamic has one scale for all rows.
The product is oneDNN's, by the operator that torch's own export quantisation uses (torch/ao/quantization/pt2e).
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

_ZERO_POINT = 128  # oneDNN's fast kernels take unsigned states
_MAX_STATE = 127
_ROUNDING = _ZERO_POINT + 0.5  # to uint8 cuts off
_SMALLEST = 1e-30  # of a scale: a row of zeros stays zeros
_BLOCK_ROWS = 4096  # quantised at once, so that no second copy of a large matrix is made

_operators: Any = torch.ops.onednn


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """A matrix (out, in) of integers, with a bias or none."""

    packed: Tensor  # oneDNN's own order
    scales: Tensor  # (out,)
    zero_points: Tensor  # (out,) all 0
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Quantise a float32 matrix."""
        integers, scales = quantize_rows(weight, max_weight())
        packed = _operators.qlinear_prepack(integers, None)
        return cls(packed, scales, torch.zeros(len(scales), dtype=torch.int32), bias)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return (…, out) of (…, in)."""
        rows = hidden_states.flatten(end_dim=-2)
        largest = torch.linalg.vector_norm(rows, math.inf, -1, keepdim=True).clamp_min(_SMALLEST)
        integers = torch.addcmul(torch.tensor(_ROUNDING), rows, _MAX_STATE / largest).to(torch.uint8)
        product = _operators.qlinear_pointwise(
            *(integers, 1.0, _ZERO_POINT, self.packed, self.scales, self.zero_points, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        scale = largest / _MAX_STATE
        output: Tensor = product * scale if self.bias is None else torch.addcmul(self.bias, product, scale)
        return output.view(*hidden_states.shape[:-1], -1)


def quantize_rows(weight: Tensor, max_weight: int) -> tuple[Tensor, Tensor]:
    """Return integers (out, in) up to ± `max_weight` and the scale (out,) of each row of `weight`."""
    integers, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
    for start in range(0, len(weight), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scales[block] = weight[block].abs().amax(dim=-1).clamp_min_(_SMALLEST) / max_weight
        integers[block] = (weight[block] / scales[block, None]).round_()
    return integers, scales


def max_weight() -> int:
    """Return 127; half of it where two products are added in 16 bits, which would cut larger ones off.

    Source: oneDNN's guide, "Nuances of int8 Computations": processors without VNNI.
    """
    has_vnni = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
    return 127 if has_vnni else 63
