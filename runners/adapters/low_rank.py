"""LoRA adapters of a decoder: each row of a batch uses one of them, or none.

    output = base(input) + up(down(input))      down (R, in), up (out, R), which contains the factor
                                                alpha / rank

    eager       the product of each adapter in the batch is added to its rows
    captured    a layer's adapters are columns of one pair of matrices in fixed memory, the pool. A
                pass computes all columns for all rows, and masks those of other adapters

Invariants:
- all values are finite: others, times a masked zero, would reach other rows, and are refused;
- another thread adds and removes adapters: sequences may name one after `add` has returned, and
  until `remove` is called;
- columns of the pool are written while no row selects them; an adapter without a place there, as
  too few are free, is in no captured pass.

Adapters are float32 beside a base of any precision. Source: LoRA (arXiv 2106.09685); batches of
several adapters, S-LoRA (arXiv 2311.03285). Shapes: B rows, T tokens of a row, N columns, J joined
layers: their outputs are concatenated, and in the pool they have that many columns for each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from runners.kv_cache import to_device
from wire.artifacts.adapter_folder import DOWN, UP
from wire.artifacts.manifest import ArtifactError

POOL_RANK = 128  # most columns on a GPU; a step with adapters reads all of them
_FREE = -1
_BASE = 0  # place of rows without an adapter
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class LowRank:
    """The products of the columns of one layer."""

    down: Tensor  # (N * J, in)
    up: Tensor  # (N * J, out)
    num_joined: int = 1

    @classmethod
    def joined(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[str], sizes: Sequence[int]
    ) -> "LowRank | None":
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        ends = np.cumsum(sizes)
        for layer, size, end in zip(layers, sizes, ends, strict=True):
            if layer + DOWN in tensors:
                down = tensors[layer + DOWN]
                up = down.new_zeros(len(down), ends[-1])
                up[:, end - size : end] = tensors[layer + UP].T
                downs.append(down)
                ups.append(up)
        return cls(torch.cat(downs), torch.cat(ups)) if downs else None

    def __call__(self, hidden_states: Tensor, is_other: Tensor | None = None) -> Tensor:
        """Return float32 (B, T, out) of (B, T, in), without columns of `is_other` (B, N)."""
        ranks = linear(hidden_states.float(), self.down)
        if is_other is not None:
            by_column = ranks.view(*hidden_states.shape[:2], -1, self.num_joined)
            by_column.masked_fill_(is_other[:, None, :, None], 0.0)
        return ranks @ self.up

    def put(self, columns: range, product: "LowRank | None") -> None:
        """Copy an adapter's product, if it has one for this layer, to its columns of the pool."""
        first = columns.start * self.num_joined
        stop = columns.stop * self.num_joined
        self.up[first:stop] = 0  # the rest of `down` is finite
        if product is not None:
            last = first + len(product.down)
            self.down[first:last] = product.down
            self.up[first:last] = product.up


class AdapterPool:
    """The columns of captured passes in all layers, and the adapter that each belongs to."""

    def __init__(self, num_columns: int, device: str) -> None:
        self.num_columns = num_columns
        self.num_bytes = 0
        self._device = device
        self.owners = torch.full((num_columns,), _FREE, device=device)  # places of the adapters
        self._columns: dict[str, range] = {}

    def layer(self, width: int, sizes: Sequence[int]) -> LowRank:
        num_columns = self.num_columns * len(sizes)
        down = torch.zeros(num_columns, width, device=self._device)
        up = torch.zeros(num_columns, sum(sizes), device=self._device)
        self.num_bytes += down.nbytes + up.nbytes
        return LowRank(down, up, len(sizes))

    def free_columns(self, rank: int) -> range | None:
        start = 0
        for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
            if start + rank <= taken.start:
                break
            start = taken.stop
        return range(start, start + rank) if start + rank <= self.num_columns else None

    def add(self, adapter: str, columns: range) -> None:
        """Open an adapter to rows; its matrices are in `columns` of all layers."""
        self.owners[columns.start : columns.stop] = columns.start + 1
        self._columns = {**self._columns, adapter: columns}

    def remove(self, adapter: str) -> None:
        others = dict(self._columns)
        columns = others.pop(adapter, range(0))
        self._columns = others
        self.owners[columns.start : columns.stop] = _FREE

    def places(self, by_row: Sequence[str | None]) -> list[int] | None:
        """Return the place of each row's adapter, or None if one has none."""
        places: list[int] = []
        for adapter in by_row:
            if adapter is None:
                places.append(_BASE)
            elif adapter in self._columns:
                places.append(self._columns[adapter].start + 1)
            else:
                return None
        return places


@dataclass(slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Callable[[Tensor], Tensor]
    layers: Sequence[str]  # outputs are concatenated in this order
    sizes: Sequence[int]  # widths of these outputs
    width: int  # inputs
    adapters: "Adapters"
    pooled: LowRank | None = None
    products: dict[str, LowRank] = field(default_factory=dict)  # by adapter

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self.base(hidden_states)
        if self.pooled is not None and self.adapters.is_other is not None:
            return output.add_(self.pooled(hidden_states, self.adapters.is_other))
        for adapter, rows in self.adapters.rows.items():
            product = self.products.get(adapter)
            if product is not None:
                output[rows] += product(hidden_states[rows])
        return output

    @property
    def column_bytes(self) -> int:
        return (self.width + sum(self.sizes)) * _FLOAT32_BYTES

    def num_bytes_with(self, tensors: Mapping[str, Tensor]) -> int:
        num_columns = sum(len(product.down) for product in list(self.products.values()))
        for layer in self.layers:
            if layer + DOWN in tensors:
                num_columns += len(tensors[layer + DOWN])
        return num_columns * self.column_bytes

    def add(self, adapter: str, tensors: Mapping[str, Tensor], places: range | None) -> None:
        product = LowRank.joined(tensors, self.layers, self.sizes)
        if product is not None:
            self.products[adapter] = product
        if self.pooled is not None and places is not None:
            self.pooled.put(places, product)


class Adapters:
    """The adapters of one decoder, and those that the rows of the current pass use."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.pool: AdapterPool | None = None
        self.is_other: Tensor | None = None  # columns (B, N); set for a captured pass with adapters
        self.rows: dict[str, slice | Tensor] = {}  # of each adapter in the current pass
        self._layers: list[AdaptedLinear] = []
        self.keys = frozenset[str]()  # adapters that sequences may name
        self._by_row: Sequence[str | None] = ()

    def open_pool(self, max_columns: int, max_bytes: int) -> None:
        """Make the pool of captured passes: as many columns as `max_bytes` hold, or none."""
        column_bytes = sum(len(layer.sizes) * layer.column_bytes for layer in self._layers)
        if num_columns := min(max_columns, max_bytes // column_bytes):
            self.pool = AdapterPool(num_columns, self.device)
            for layer in self._layers:
                layer.pooled = self.pool.layer(layer.width, layer.sizes)

    def num_bytes_with(self, tensors: Mapping[str, Tensor]) -> int:
        """Return the memory of the pool and of all adapters, one with `tensors` included."""
        pool_bytes = 0 if self.pool is None else self.pool.num_bytes
        return pool_bytes + sum(layer.num_bytes_with(tensors) for layer in self._layers)

    def add(
        self, adapter: str, tensors: Mapping[str, Tensor], max_total_bytes: int | None = None
    ) -> None:
        """Copy an adapter to the layers; raise `ArtifactError` if not finite, or too large."""
        rank = 0
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ArtifactError(f"{name} has values that are not finite; train it again")
            if name.endswith(DOWN):
                rank = max(rank, len(tensor))
        num_bytes = self.num_bytes_with(tensors)
        if max_total_bytes is not None and num_bytes > max_total_bytes:
            raise ArtifactError(
                f"with it all adapters of its base would take {num_bytes / 1e6:g} MB;"
                f" {max_total_bytes / 1e6:g} MB are allowed, on a GPU at most a quarter of its free"
                " memory"
            )
        places = None if self.pool is None else self.pool.free_columns(rank)
        on_device = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        try:
            for layer in self._layers:
                layer.add(adapter, on_device, places)
        # such as too little memory, which those of the first layers would keep
        except BaseException:
            self.remove(adapter)
            raise
        if self.pool is not None and places is not None:
            self.pool.add(adapter, places)
        self.keys |= {adapter}

    def remove(self, adapter: str) -> None:
        """Free the tensors of an adapter, which no sequence may name any more."""
        self.keys -= {adapter}
        for layer in self._layers:
            layer.products.pop(adapter, None)
        if self.pool is not None:
            self.pool.remove(adapter)

    def select(self, by_row: Sequence[str | None]) -> None:
        """Set the adapter of each row for the next pass; `None` selects the base model."""
        self.is_other = None
        if self._by_row == by_row:
            return
        self._by_row = list(by_row)
        self.rows = {}
        for adapter in dict.fromkeys(filter(None, by_row)):
            rows = [row for row, of_row in enumerate(by_row) if of_row == adapter]
            is_alone = len(rows) == len(by_row)
            self.rows[adapter] = slice(None) if is_alone else to_device(rows, self.device)

    def over(
        self,
        base: Callable[[Tensor], Tensor],
        layers: Sequence[str],
        sizes: Sequence[int],
        width: int,
    ) -> AdaptedLinear:
        """Return `base`, open to adapters of `layers`, whose outputs it concatenates."""
        adapted = AdaptedLinear(base, layers, sizes, width, self)
        self._layers.append(adapted)
        return adapted
