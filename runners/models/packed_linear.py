"""A matrix for the CPU whose products oneDNN makes, from weights in the order that its kernels read.

torch's own `linear` has float32 products made by MKL, which reaches half of an AMD core's rate or less, and puts
bfloat16 weights in order at every call (`python -m export.bench.linears`). The operators are those that torch's
inductor uses when it freezes a model (torch 2.13, torch/_inductor/fx_passes/mkldnn_fusion.py).
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

# Rows times weights: where there are fewer, oneDNN's call takes longer than MKL's product. Source: the same command.
_FEW_PRODUCTS = 400_000

_operators: Any = torch.ops.mkldnn


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A matrix (out, in), with a bias or none."""

    matrix: Tensor  # in oneDNN's own order, or plain
    plain: Tensor | None  # where the matrix is small
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Pack a matrix."""
        return cls(_operators._reorder_linear_weight(weight), _if_small(weight), bias)

    @classmethod
    def view(cls, weight: Tensor) -> Self:
        """Use a matrix as it lies, because somebody else needs it so: about as fast for many rows, less so for few."""
        return cls(weight, _if_small(weight), None)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return (…, out) of (…, in)."""
        if self.plain is not None and hidden_states.numel() * len(self.plain) < _FEW_PRODUCTS:
            return linear(hidden_states, self.plain, self.bias)
        product: Tensor = _operators._linear_pointwise(hidden_states, self.matrix, self.bias, "none", [], "")
        return product


def can_pack(weight: Tensor) -> bool:
    """Say whether a matrix can be packed: on a CPU, in a torch that has oneDNN."""
    is_packable = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return is_packable and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _if_small(weight: Tensor) -> Tensor | None:
    return weight if weight.dtype == torch.float32 and weight.numel() < _FEW_PRODUCTS else None
