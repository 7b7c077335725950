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

import torch
from torch import Tensor
from torch.nn.functional import linear

from runners.artifacts.adapter_folder import DOWN, UP
from runners.models.linear import Linear

_FEW_TOKENS, _FEW_RANKS = 64, 512  # up to these, all adapters are computed for all rows


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two matrices with a small dimension between them."""

    down: Tensor  # (R, in)
    up: Tensor  # (R, out)
    number: int = -1  # of its adapter; -1: of several

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
class JoinedRanks:
    """The matrices of all adapters that change one layer, one after the other."""

    by_key: Mapping[str, LowRank]  # by adapter: parts of `joined`
    joined: LowRank
    owners: Tensor  # (S,) the number of the adapter of each rank

    @classmethod
    def of(cls, by_key: Mapping[str, LowRank]) -> "JoinedRanks | None":
        """Copy matrices into one; None if there are none."""
        if not by_key:
            return None
        pairs = list(by_key.values())
        joined = LowRank(torch.cat([pair.down for pair in pairs]), torch.cat([pair.up for pair in pairs]))
        ranks = [len(pair.down) for pair in pairs]
        owners = torch.tensor([pair.number for pair in pairs]).repeat_interleave(torch.tensor(ranks))
        downs, ups = torch.split(joined.down, ranks), torch.split(joined.up, ranks)
        parts = {
            key: LowRank(down, up, pair.number)
            for (key, pair), down, up in zip(by_key.items(), downs, ups, strict=True)
        }
        return cls(parts, joined, owners.to(joined.down.device))


@dataclass(slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Linear
    layers: Sequence[str]  # whose outputs it concatenates
    sizes: Sequence[int]  # of these outputs
    selection: Selection
    ranks: JoinedRanks | None = None  # replaced as a whole, maybe by another thread: a pass reads it once

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output, groups, ranks = self.base(hidden_states), self.selection.groups, self.ranks
        if ranks is None or not groups:
            return output
        num_tokens = hidden_states.shape[0] * hidden_states.shape[1]
        if len(groups) > 1 and num_tokens <= _FEW_TOKENS and len(ranks.owners) <= _FEW_RANKS:
            is_own = ranks.owners == self.selection.by_row[:, None]  # (B, S)
            low = linear(hidden_states.float(), ranks.joined.down) * is_own[:, None]  # (B, T, S)
            output += (low @ ranks.joined.up).to(output.dtype)
            return output
        for group in groups:
            if (low_rank := ranks.by_key.get(group.adapter)) is None:
                continue
            if group.rows is None:
                output += low_rank(hidden_states).to(output.dtype)
            else:
                output.index_add_(0, group.rows, low_rank(hidden_states[group.rows]).to(output.dtype))
        return output

    def add(self, adapter: str, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Add the matrices of an adapter, if it changes this layer."""
        if (pair := _joined(tensors, self.layers, self.sizes, number)) is not None:
            self.ranks = JoinedRanks.of({**self._by_key(), adapter: pair})

    def remove(self, adapter: str) -> None:
        """Free the matrices of an adapter, if it changes this layer."""
        kept = {key: pair for key, pair in self._by_key().items() if key != adapter}
        if len(kept) < len(self._by_key()):
            self.ranks = JoinedRanks.of(kept)

    def _by_key(self) -> Mapping[str, LowRank]:
        return {} if self.ranks is None else self.ranks.by_key


class Adapters:
    """The adapters of one decoder, and those that the rows of the current pass use.

    One other thread may add and remove adapters while the decoder runs. A pass may then find an adapter in some layers
    only, which changes nothing: sequences may name it after `add` has returned, and until `remove` is called.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._layers: list[AdaptedLinear] = []
        self._keys = frozenset[str]()
        self._by_row: list[str | None] = []
        self._numbers: dict[str, int] = {}  # also of removed adapters: a number is never given to another
        self._selection = Selection((), torch.empty(0))

    @property
    def keys(self) -> frozenset[str]:
        """The adapters that sequences may name."""
        return self._keys

    def add(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of an adapter, with the names of its file, to the layers of the loaded decoder."""
        number = self._numbers.setdefault(adapter, len(self._numbers))
        on_device = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        try:
            for layer in self._layers:
                layer.add(adapter, number, on_device)
        except BaseException:  # such as too little memory, which those of the first layers would keep
            self.remove(adapter)
            raise
        self._keys |= {adapter}

    def remove(self, adapter: str) -> None:
        """Free the tensors of an adapter, which no sequence may name any more."""
        self._keys -= {adapter}
        for layer in self._layers:
            layer.remove(adapter)

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
        """Return `base`, to which adapters can be added that change one of `layers`.

        It concatenates their outputs, which have `sizes`.
        """
        self._layers.append(adapted := AdaptedLinear(base, layers, sizes, self._selection))
        return adapted


def copy_adapters(by_slot: list[str | None], sources: Sequence[int], targets: Sequence[int]) -> None:
    """Copy the adapters of the slots `sources` to the slots `targets`, pairwise; all are read before any is written."""
    copied = [by_slot[source] for source in sources]
    for target, adapter in zip(targets, copied, strict=True):
        by_slot[target] = adapter


def _joined(tensors: Mapping[str, Tensor], layers: Sequence[str], sizes: Sequence[int], number: int) -> LowRank | None:
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
    return LowRank(down, up, number)
