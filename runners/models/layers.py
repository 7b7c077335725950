"""Operations of both families: linear layers, and the masks of attention.

    torch's linear    the dtype of its weights
    PackedLinear      float32 and bfloat16 on a CPU, by oneDNN, in the order that its kernels read
                      (torch 2.13, torch/_inductor/fx_passes/mkldnn_fusion.py): torch's own `linear`
                      reaches half of an AMD core's rate with MKL (measured at 63dee10)
    Int8Linear        8-bit integers on x86-64, by oneDNN (torch/ao/quantization/pt2e)
    Int8WeightLinear  8-bit weights and float32 states on other CPUs: oneDNN 3.7 has no kernel for
                      integer products on AArch64

Int8Linear quantizes weights once, per output, and its input per row and call, by the operator for
tables of embeddings: one pass, where norm, division, rounding and conversion were four.

    weight = scale (out, 1) * integers (out, in)
    states = scale (rows, 1) * integers (rows, in) + least (rows, 1)

The integer product is exact and each row has its own scale: a sequence gets the same numbers in
every batch, and a NaN stays in its row; quantized.linear_dynamic has one scale for all rows.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from wire.artifacts.manifest import Precision

# Rows x weights: below this, oneDNN's call takes longer than MKL's product; measured at 63dee10.
_FEW_PRODUCTS = 400_000

_MIN_SCALE = 1e-30  # keeps a row of zeros zero
_ROW_END = 8  # bytes after a row's integers: its scale and its least, as float32
_MOST = 127  # magnitude of a weight
_X86 = ("x86_64", "AMD64")
_BLOCK_ROWS = 4096  # quantized at once, which avoids a second copy of a large matrix

_mkldnn: Any = torch.ops.mkldnn
_onednn: Any = torch.ops.onednn
_weight_product: Any = torch.ops.aten._weight_int8pack_mm.default
_quantize: Any = torch.ops.quantized.embedding_bag_byte_prepack.default

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "int8": torch.float32,  # activations and non-matrix weights
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Linear = Callable[[Tensor], Tensor]  # (…, in) -> (…, out)


def linear_layer(
    weight: Tensor, bias: Tensor | None, precision: Precision, is_shared: bool = False
) -> Linear:
    """Return the layer of a matrix (out, in); `is_shared`: without a copy of it, if possible."""
    if precision == "int8":
        is_x86 = platform.machine() in _X86
        return (Int8Linear if is_x86 else Int8WeightLinear).of(weight, bias)
    if not can_pack(weight):
        return partial(linear, weight=weight, bias=bias)
    return (PackedLinear.view if is_shared else PackedLinear.of)(weight, bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A matrix in oneDNN's order; a small one is also kept plain, for MKL."""

    matrix: Tensor  # packed, or plain in a view
    plain: Tensor | None  # None if the matrix is large
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Return a packed copy of `weight` (out, in)."""
        return cls(_mkldnn._reorder_linear_weight(weight), _if_small(weight), bias)

    @classmethod
    def view(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Return a layer sharing `weight`'s memory: about as fast for many rows, slower for few."""
        return cls(weight, _if_small(weight), bias)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        if self.plain is not None and hidden_states.numel() * len(self.plain) < _FEW_PRODUCTS:
            return linear(hidden_states, self.plain, self.bias)
        product: Tensor = _mkldnn._linear_pointwise(
            hidden_states, self.matrix, self.bias, "none", [], ""
        )
        return product


def can_pack(weight: Tensor) -> bool:
    """Return True for what oneDNN computes: float32, bfloat16 with AVX-512 or Arm's BF16."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    has_bfloat16 = weight.dtype == torch.bfloat16 and _mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or has_bfloat16


def _if_small(weight: Tensor) -> Tensor | None:
    return weight if weight.dtype == torch.float32 and weight.numel() < _FEW_PRODUCTS else None


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """A matrix of 8-bit integers, with float32 input and output; `in` is a multiple of 4."""

    packed: Tensor  # (out, in + 8) in oneDNN's order; the end of a state's row meets zeros
    scales: Tensor  # (out,)
    zero_points: Tensor  # (out,) all 0
    sums: Tensor  # (out,) of the quantized weights, which the least of a row multiplies
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        integers, scales = quantize_rows(weight, max_weight(), _ROW_END)
        packed = _onednn.qlinear_prepack(integers, None)
        zero_points = torch.zeros(len(scales), dtype=torch.int32)
        ones = torch.ones(1, integers.shape[1], dtype=torch.uint8)
        sums = _integer_product(ones, packed, scales, zero_points)[0]
        return cls(packed, scales, zero_points, sums, bias)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        quantized = _quantize(hidden_states)  # (…, in + 8)
        product = _integer_product(quantized, self.packed, self.scales, self.zero_points)
        row_ends = quantized.view(torch.float32)
        num_floats = row_ends.shape[-1]
        scale = row_ends.narrow(-1, num_floats - 2, 1)
        least = row_ends.narrow(-1, num_floats - 1, 1)
        # NaN in a row with a NaN or infinity, which its integers would hide; else 0
        failure = hidden_states.sum(dim=-1, keepdim=True).mul_(0.0)
        product.mul_(scale).addcmul_(failure.add_(least), self.sums)
        return product if self.bias is None else product.add_(self.bias)


def _integer_product(
    quantized: Tensor, packed: Tensor, scales: Tensor, zero_points: Tensor
) -> Tensor:
    product: Tensor = _onednn.qlinear_pointwise.default(
        *(quantized, 1.0, 0, packed, scales, zero_points, None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return product


@dataclass(frozen=True, slots=True)
class Int8WeightLinear:
    """A matrix of 8-bit integers; states and products stay float32."""

    integers: Tensor  # (out, in)
    scales: Tensor  # (out,)
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        return cls(*quantize_rows(weight, _MOST), bias)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        product: Tensor = _weight_product(
            hidden_states.flatten(0, -2), self.integers, self.scales
        ).unflatten(0, hidden_states.shape[:-1])
        return product if self.bias is None else product.add_(self.bias)


def quantize_rows(weight: Tensor, max_weight: int, num_zeros: int = 0) -> tuple[Tensor, Tensor]:
    """Return integers (out, in + num_zeros) within ± `max_weight`, and scales (out,)."""
    num_inputs = weight.shape[1]
    integers = torch.zeros(len(weight), num_inputs + num_zeros, dtype=torch.int8)
    scales = torch.empty(len(weight))
    for start in range(0, len(weight), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scales[block] = weight[block].abs().amax(dim=-1).clamp_min_(_MIN_SCALE) / max_weight
        integers[block, :num_inputs] = (weight[block] / scales[block, None]).round_()
    return integers, scales


def max_weight() -> int:
    """Return 127, or 63 on x86 without VNNI, which saturates (oneDNN, "Nuances of int8")."""
    if platform.machine() not in _X86:
        return _MOST
    has_vnni = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))
    return _MOST if has_vnni else 63


_MASK_ALIGNMENT = 8  # strides of a mask in torch's memory-efficient attention


def as_bias(is_visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores, aligned once for all layers."""
    width = is_visible.shape[-1]
    num_aligned = -(-width // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    size = (*is_visible.shape[:-1], num_aligned)
    bias = torch.zeros(size, dtype=dtype, device=is_visible.device)[..., :width]
    return bias.masked_fill_(~is_visible, -torch.inf)
