"""LoRA adapters of a decoder: each row of a batch uses one of them, or none.

    output = base(input) + up(down(input))      down (R, in), up (out, R), which contains the factor alpha / rank

The base computes one product for all rows; an adapter in the batch adds its low-rank products to its own rows. So
sequences of the base and of any number of its adapters are decoded together. Adapters are float32 beside a base of any
precision. Source: LoRA (arXiv 2106.09685); batches of several adapters, S-LoRA (arXiv 2311.03285).
Shapes: B rows, G rows of one adapter, T tokens of a row, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

from runners.models.linear import Linear

DOWN, UP = ".down", ".up"  # after the name of a layer, in an adapter's file


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two matrices with a small dimension between them."""

    down: Tensor  # (R, in)
    up: Tensor  # (out, R)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return float32 (…, out) of (…, in)."""
        return linear(linear(hidden_states.float(), self.down), self.up)


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of one adapter in the current pass."""

    adapter: str
    rows: Tensor | None  # (G,) on the device; None: all rows


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Linear
    low_ranks: Mapping[str, LowRank]  # by adapter
    groups: Sequence[AdapterRows]  # of the current pass, set by `Adapters.select`

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self.base(hidden_states)
        for group in self.groups:
            if (low_rank := self.low_ranks.get(group.adapter)) is None:
                continue
            if group.rows is None:
                output += low_rank(hidden_states).to(output.dtype)
            else:
                output.index_add_(0, group.rows, low_rank(hidden_states[group.rows]).to(output.dtype))
        return output


class Adapters:
    """The adapters of one decoder, and those that the rows of the current pass use."""

    def __init__(self, tensors: Mapping[str, Mapping[str, Tensor]] | None = None, device: str = "cpu") -> None:
        """`tensors`: of each adapter by its key, with the names of its file."""
        self._tensors = tensors or {}
        self._device = device
        self._by_row: list[str | None] = []
        self._groups: list[AdapterRows] = []

    @classmethod
    def load(cls, files: Mapping[str, Path], device: str) -> Self:
        """Load adapters from their files, by key."""
        return cls({adapter: load_file(file, device) for adapter, file in files.items()}, device)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def select(self, by_row: Sequence[str | None]) -> None:
        """Set the adapter of each row for the next pass; None: the base alone."""
        if self._by_row == by_row:
            return
        self._by_row = list(by_row)
        used = dict.fromkeys(adapter for adapter in by_row if adapter is not None)
        self._groups[:] = [AdapterRows(adapter, self._rows(adapter)) for adapter in used]

    def _rows(self, adapter: str) -> Tensor | None:
        rows = [row for row, each in enumerate(self._by_row) if each == adapter]
        return None if len(rows) == len(self._by_row) else torch.tensor(rows, device=self._device)

    def over(self, base: Linear, layers: Sequence[str], sizes: Sequence[int]) -> Linear:
        """Return `base` with the adapters that change one of `layers`, whose outputs of `sizes` it concatenates."""
        joined = {adapter: _joined(tensors, layers, sizes) for adapter, tensors in self._tensors.items()}
        low_ranks = {adapter: low_rank for adapter, low_rank in joined.items() if low_rank is not None}
        return AdaptedLinear(base, low_ranks, self._groups) if low_ranks else base


def copy_adapters(by_slot: list[str | None], sources: Sequence[int], targets: Sequence[int]) -> None:
    """Copy the adapters of the slots `sources` to the slots `targets`, pairwise; all are read before any is written."""
    copied = [by_slot[source] for source in sources]
    for target, adapter in zip(targets, copied, strict=True):
        by_slot[target] = adapter


def _joined(tensors: Mapping[str, Tensor], layers: Sequence[str], sizes: Sequence[int]) -> LowRank | None:
    """Return one low-rank product for the concatenated outputs of `layers`; None if none of them is changed."""
    changed = [index for index, layer in enumerate(layers) if layer + DOWN in tensors]
    if not changed:
        return None
    down = torch.cat([tensors[layers[index] + DOWN] for index in changed])
    up, rank = down.new_zeros(sum(sizes), len(down)), 0
    for index in changed:
        part, start = tensors[layers[index] + UP], sum(sizes[:index])
        up[start : start + sizes[index], rank : rank + part.shape[1]] = part
        rank += part.shape[1]
    return LowRank(down, up)
