"""LoRA adapters of a decoder: each row of a batch uses one of them, or none.

    output = base(input) + up(down(input))      down (R, in), up (out, R), which contains the factor alpha / rank

The base computes one product for all rows; an adapter in the batch adds its low-rank products to its own rows. So
sequences of the base and of any number of its adapters are decoded together. In a step of few tokens, a masked product
of all adapters takes less time than a small one for each. Adapters are float32 beside a base of any precision.
Source: LoRA (arXiv 2106.09685); batches of several adapters, S-LoRA (arXiv 2311.03285).
Shapes: B rows, G rows of one adapter, T tokens of a row, R rank, S ranks of all adapters together.
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
_FEW_TOKENS, _FEW_RANKS = 64, 512  # up to these, all adapters are computed for all rows


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two matrices with a small dimension between them."""

    down: Tensor  # (R, in)
    up: Tensor  # (R, out)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return float32 (…, out) of (…, in)."""
        return linear(hidden_states.float(), self.down) @ self.up


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of one adapter in the current pass."""

    adapter: str
    rows: Tensor | None  # (G,) on the device; None: all rows


@dataclass(slots=True)
class Selection:
    """The adapters of the current pass, set by `Adapters.select`; all layers share it."""

    groups: Sequence[AdapterRows]
    by_row: Tensor  # (B,) the number of each row's adapter, -1 for the base


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Linear
    low_ranks: Mapping[str, LowRank]  # by adapter: parts of `joined`
    joined: LowRank  # of all adapters, one after the other
    owners: Tensor  # (S,) the number of the adapter of each rank
    selection: Selection

    @classmethod
    def of(cls, base: Linear, low_ranks: Mapping[int, tuple[str, LowRank]], selection: Selection) -> "AdaptedLinear":
        """Join the matrices of the adapters, by number, with their keys."""
        pairs = [low_rank for _, low_rank in low_ranks.values()]
        joined = LowRank(torch.cat([pair.down for pair in pairs]), torch.cat([pair.up for pair in pairs]))
        ranks = torch.tensor([len(pair.down) for pair in pairs])
        owners = torch.tensor(list(low_ranks)).repeat_interleave(ranks).to(joined.down.device)
        parts = zip(*(torch.split(each, ranks.tolist()) for each in (joined.down, joined.up)), strict=True)
        keys = [key for key, _ in low_ranks.values()]
        by_key = {key: LowRank(*part) for key, part in zip(keys, parts, strict=True)}
        return cls(base, by_key, joined, owners, selection)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output, groups = self.base(hidden_states), self.selection.groups
        num_tokens = hidden_states.shape[0] * hidden_states.shape[1]
        if len(groups) > 1 and num_tokens <= _FEW_TOKENS and len(self.owners) <= _FEW_RANKS:
            is_own = self.owners == self.selection.by_row[:, None]  # (B, S)
            low = linear(hidden_states.float(), self.joined.down) * is_own[:, None]  # (B, T, S)
            output += (low @ self.joined.up).to(output.dtype)
            return output
        for group in groups:
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
        self._numbers = {adapter: number for number, adapter in enumerate(self._tensors)}
        self._selection = Selection((), torch.empty(0))

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
        self._selection.groups = [AdapterRows(adapter, self._rows(adapter)) for adapter in used]
        if used:  # without adapters a step may be captured, which allows no copy from the host
            numbers = [-1 if adapter is None else self._numbers[adapter] for adapter in by_row]
            self._selection.by_row = torch.tensor(numbers, device=self._device)

    def _rows(self, adapter: str) -> Tensor | None:
        rows = [row for row, each in enumerate(self._by_row) if each == adapter]
        return None if len(rows) == len(self._by_row) else torch.tensor(rows, device=self._device)

    def over(self, base: Linear, layers: Sequence[str], sizes: Sequence[int]) -> Linear:
        """Return `base` with the adapters that change one of `layers`, whose outputs of `sizes` it concatenates."""
        joined = [(adapter, _joined(tensors, layers, sizes)) for adapter, tensors in self._tensors.items()]
        low_ranks = {number: (key, pair) for number, (key, pair) in enumerate(joined) if pair is not None}
        return AdaptedLinear.of(base, low_ranks, self._selection) if low_ranks else base


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
    up, rank = down.new_zeros(len(down), sum(sizes)), 0
    for index in changed:
        part, start = tensors[layers[index] + UP].T, sum(sizes[:index])  # (R, out)
        up[rank : rank + len(part), start : start + sizes[index]] = part
        rank += len(part)
    return LowRank(down, up)
