"""LoRA adapters of a decoder: each row of a batch uses one of them, or none.

    output = base(input) + up(down(input))      down (R, in), up (out, R), which contains the factor
                                                alpha / rank

The base computes one product for all rows; an adapter in the batch adds its low-rank products to
its own rows. So sequences of the base and of any number of its adapters are decoded together. In a
step of few tokens, the products of all adapters are one batched product, over rows sorted by
adapter; captured steps read a pool (runners/models/adapter_pool.py). Adapters are float32 beside a
base of any precision. Source: LoRA (arXiv 2106.09685); batches of several adapters, S-LoRA (arXiv
2311.03285). Shapes: B rows, T tokens of a row, G adapters in the batch, P rows of the most frequent
one, R rank, K adapters of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from runners.models.adapter_pool import AdapterPool, PooledRanks
from runners.models.linear import Linear
from runners.staging import to_device
from wire.artifacts.adapter_folder import DOWN, UP, NoRoomError

_FEW_TOKENS = 64  # up to these, several adapters are one batched product
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class LowRank:
    """The product of two matrices with a small dimension between them."""

    down: Tensor  # (R, in)
    up: Tensor  # (R, out)

    @classmethod
    def joined(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[str], sizes: Sequence[int]
    ) -> "LowRank | None":
        """Return one product for the joined `layers`, or None if none of them is changed."""
        changed = [index for index, layer in enumerate(layers) if layer + DOWN in tensors]
        if not changed:
            return None
        down = torch.cat([tensors[layers[index] + DOWN] for index in changed])
        ups = [tensors[layers[index] + UP].T for index in changed]  # (R, out) each
        up = down.new_zeros(len(down), sum(sizes))
        rows = torch.split(up, [len(part) for part in ups])
        for index, row, part in zip(changed, rows, ups, strict=True):
            start = sum(sizes[:index])
            row[:, start : start + sizes[index]] = part
        return cls(down, up)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return float32 (…, out) of (…, in)."""
        return linear(hidden_states.float(), self.down) @ self.up


@dataclass(frozen=True, slots=True)
class StackedRanks:
    """The matrices of all adapters that change one layer, with zeros up to the highest rank."""

    keys: tuple[str, ...]
    down: Tensor  # (K, R, in)
    up: Tensor  # (K, R, out)
    by_key: Mapping[str, LowRank]  # parts of `down` and `up`

    @classmethod
    def of(cls, by_key: Mapping[str, LowRank]) -> "StackedRanks | None":
        """Copy matrices into one; return None if there are none."""
        if not by_key:
            return None
        down = pad_sequence([pair.down for pair in by_key.values()], True)
        up = pad_sequence([pair.up for pair in by_key.values()], True)
        parts = {
            key: LowRank(down[index, : len(pair.down)], up[index, : len(pair.up)])
            for index, (key, pair) in enumerate(by_key.items())
        }
        return cls(tuple(by_key), down, up, parts)


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The rows of a pass that use the adapters of a layer."""

    adapters: Sequence[str]  # used in the batch
    stacked: Tensor | None  # (G,) their places in the layer's stack; None selects all, in order
    by_adapter: Sequence[Tensor | None]  # the rows of each; None selects all rows
    rows: Tensor  # (G, P) the rows of each, the first one repeated
    kept: Tensor | None  # places in the flattened `rows` without repetitions; None keeps all

    @classmethod
    def of(cls, keys: Sequence[str], by_row: Sequence[str | None], device: str) -> "RowLayout":
        """Return the layout of a layer that the adapters `keys` change."""
        rows_of = dict[str, list[int]]()
        for key in keys:
            if rows := [row for row, each in enumerate(by_row) if each == key]:
                rows_of[key] = rows
        num_padded = max(map(len, rows_of.values()), default=0)
        padded = [rows + rows[:1] * (num_padded - len(rows)) for rows in rows_of.values()]
        kept: list[int] = []
        for start, rows in zip(count(step=num_padded), rows_of.values(), strict=False):
            kept += range(start, start + len(rows))

        def tensor(numbers: Sequence[Any]) -> Tensor:
            return to_device(numbers, device, torch.long)

        return cls(
            tuple(rows_of),
            None if len(rows_of) == len(keys) else tensor([keys.index(key) for key in rows_of]),
            [None if len(rows) == len(by_row) else tensor(rows) for rows in rows_of.values()],
            tensor(padded),
            None if len(kept) == len(padded) * num_padded else tensor(kept),
        )


@dataclass(slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Linear
    layers: Sequence[str]  # outputs are concatenated in this order
    sizes: Sequence[int]  # widths of these outputs
    width: int  # inputs
    adapters: "Adapters"
    pooled: PooledRanks | None = None
    # replaced as a whole, maybe by another thread: a pass reads it once
    ranks: StackedRanks | None = None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self.base(hidden_states)
        if self.pooled is not None and self.adapters.is_other is not None:
            return output.add_(self.pooled(hidden_states, self.adapters.is_other))
        ranks = self.ranks
        if ranks is None or not self.adapters.are_selected:
            return output
        layout = self.adapters.layout(ranks.keys)
        num_tokens = hidden_states.shape[0] * hidden_states.shape[1]
        if len(layout.adapters) > 1 and num_tokens <= _FEW_TOKENS:
            return self._add_batched(output, hidden_states, ranks, layout)
        for adapter, rows in zip(layout.adapters, layout.by_adapter, strict=True):
            low_rank = ranks.by_key[adapter]
            if rows is None:
                output += low_rank(hidden_states).to(output.dtype)
            else:
                output.index_add_(0, rows, low_rank(hidden_states[rows]).to(output.dtype))
        return output

    def _add_batched(
        self, output: Tensor, hidden_states: Tensor, ranks: StackedRanks, layout: RowLayout
    ) -> Tensor:
        """Add the products of several adapters to `output` (B, T, out), and return it."""
        down = ranks.down
        up = ranks.up
        rows = layout.rows.flatten()
        if layout.stacked is not None:
            down, up = down[layout.stacked], up[layout.stacked]
        # (G, P * T, in)
        states = hidden_states[rows].float().view(len(down), -1, hidden_states.shape[-1])
        added = (states @ down.mT @ up).view(len(rows), *output.shape[1:])
        if layout.kept is not None:
            rows, added = rows[layout.kept], added[layout.kept]
        return output.index_add_(0, rows, added.to(output.dtype))

    @property
    def rank_bytes(self) -> int:
        """The size of a rank: a row of both matrices."""
        return (self.width + sum(self.sizes)) * _FLOAT32_BYTES

    def num_bytes_with(self, tensors: Mapping[str, Tensor]) -> int:
        """Return the size of the matrices with one more adapter, all padded to the highest rank."""
        rank = sum(len(tensors[layer + DOWN]) for layer in self.layers if layer + DOWN in tensors)
        num_adapters = int(rank > 0)
        if self.ranks is not None:
            num_adapters += len(self.ranks.down)
            rank = max(rank, self.ranks.down.shape[1])
        return num_adapters * rank * self.rank_bytes

    def add(
        self, adapter: str, tensors: Mapping[str, Tensor], columns: range | None = None
    ) -> None:
        """Add the matrices of an adapter, if it changes this layer, to `columns` of a pool too."""
        pair = LowRank.joined(tensors, self.layers, self.sizes)
        if pair is not None:
            others = {} if self.ranks is None else self.ranks.by_key
            self.ranks = StackedRanks.of({**others, adapter: pair})
        if self.pooled is not None and columns is not None:
            nothing = self.pooled.down[:0], self.pooled.up[:0]
            self.pooled.put(columns, *(nothing if pair is None else (pair.down, pair.up)))

    def remove(self, adapter: str) -> None:
        """Free the matrices of an adapter, if it changes this layer."""
        if self.ranks is not None and adapter in self.ranks.by_key:
            by_key = self.ranks.by_key
            self.ranks = StackedRanks.of({key: by_key[key] for key in by_key if key != adapter})


class Adapters:
    """The adapters of one decoder, and those that the rows of the current pass use.

    One other thread may add and remove adapters while the decoder runs. A pass may then find an
    adapter in some layers only, which changes nothing: sequences may name it after `add` has
    returned, and until `remove` is called.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self.pool: AdapterPool | None = None
        # columns of the pool that rows of a captured pass do not read, (B, N); else None
        self.is_other: Tensor | None = None
        self._layers: list[AdaptedLinear] = []
        self.keys = frozenset[str]()  # adapters that sequences may name
        self._by_row: Sequence[str | None] = ()
        self._layouts: dict[
            tuple[str, ...], RowLayout
        ] = {}  # layouts of these rows, by a layer's adapters
        # without, a step may be captured, which allows no copy from the host
        self.are_selected = False

    def open_pool(self, max_columns: int, max_bytes: int) -> None:
        """Make the pool of captured passes over the layers of the loaded decoder: as many columns
        as `max_bytes` hold, at most `max_columns`; without any there is no pool.
        """
        column_bytes = sum(len(layer.sizes) * layer.rank_bytes for layer in self._layers)
        if num_columns := min(max_columns, max_bytes // column_bytes):
            self.pool = AdapterPool(num_columns, self._device)
            for layer in self._layers:
                layer.pooled = self.pool.layer(layer.width, layer.sizes)

    def num_bytes_with(self, tensors: Mapping[str, Tensor]) -> int:
        """Return the memory of the pool and of all adapters, one with `tensors` included."""
        pool_bytes = 0 if self.pool is None else self.pool.num_bytes
        return pool_bytes + sum(layer.num_bytes_with(tensors) for layer in self._layers)

    def add(
        self, adapter: str, tensors: Mapping[str, Tensor], max_total_bytes: int | None = None
    ) -> None:
        """Copy an adapter's tensors, named as in its file, to the layers of the loaded decoder.

        Raise `NoRoomError` if all adapters would then take more than `max_total_bytes`.
        """
        num_bytes = self.num_bytes_with(tensors)
        if max_total_bytes is not None and num_bytes > max_total_bytes:
            raise NoRoomError(
                f"with it all adapters of its base would take {num_bytes / 1e6:g} MB, each with the"
                f" highest rank; {max_total_bytes / 1e6:g} MB are allowed (DIPTYCH_ADAPTERS_MB, on"
                " a GPU at most a quarter of its free memory)"
            )
        columns = None if self.pool is None else self.pool.free_columns(tensors)
        on_device = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        try:
            for layer in self._layers:
                layer.add(adapter, on_device, columns)
        # such as too little memory, which those of the first layers would keep
        except BaseException:
            self.remove(adapter)
            raise
        if self.pool is not None and columns is not None:
            self.pool.add(adapter, columns)
        self.keys |= {adapter}

    def remove(self, adapter: str) -> None:
        """Free the tensors of an adapter, which no sequence may name any more."""
        self.keys -= {adapter}
        for layer in self._layers:
            layer.remove(adapter)
        if self.pool is not None:
            self.pool.remove(adapter)

    def select(self, by_row: Sequence[str | None]) -> None:
        """Set the adapter of each row for the next pass; `None` selects the base model."""
        self.is_other = None
        if self._by_row != by_row:
            self._by_row = list(by_row)
            self._layouts = {}
            self.are_selected = any(by_row)

    def select_places(self, places: Tensor) -> None:
        """Set the places in the pool (B,) of the rows of the next pass, which is captured."""
        assert self.pool is not None
        self.is_other = self.pool.is_other(places)

    def layout(self, keys: tuple[str, ...]) -> RowLayout:
        """Return the layout of the selected rows in a layer that the adapters `keys` change."""
        if keys not in self._layouts:
            self._layouts[keys] = RowLayout.of(keys, self._by_row, self._device)
        return self._layouts[keys]

    def over(
        self, base: Linear, layers: Sequence[str], sizes: Sequence[int], width: int
    ) -> "AdaptedLinear":
        """Return `base`, open to adapters of `layers`, whose outputs of `sizes` it concatenates;
        their inputs have `width`.
        """
        self._layers.append(adapted := AdaptedLinear(base, layers, sizes, width, self))
        return adapted
