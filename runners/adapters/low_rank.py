"""LoRA adapters of a decoder: each row of a batch uses one of them, or none.

    output = base(input) + up(down(input))      down (R, in), up (out, R), which contains the factor
                                                alpha / rank

Problem: sequences of the base and of any number of its adapters are decoded together; a captured
pass has fixed shapes and addresses, while adapters of any rank come and go.

Solution: the adapters of a layer are the columns of one pair of matrices, as many of each as its
rank. A pass computes the products of columns for all rows, and masks those of other adapters.

    eager       the columns of the adapters in the batch, from matrices that are replaced when an
                adapter is added or removed
    captured    all columns of a pool in fixed memory; a number selects an adapter's

Invariants:
- all values are finite: others, times a masked zero, would reach other rows, and are refused;
- a pass reads a layer's matrices once: another thread may replace them. Sequences may name an
  adapter after `add` has returned, and until `remove` is called;
- columns of the pool are written while no row selects them; an adapter without a place there, as
  too few are free, is in no captured pass.

Adapters are float32 beside a base of any precision. Source: LoRA (arXiv 2106.09685); batches of
several adapters, S-LoRA (arXiv 2311.03285). Shapes: B rows, T tokens of a row, N columns, J joined
layers: their outputs are concatenated, and in the pool they have that many columns for each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from runners.staging import array_to_device, to_device
from wire.artifacts.adapter_folder import DOWN, UP, AdapterError, NoRoomError

POOL_RANK = 128  # most columns on a GPU; a step with adapters reads all of them
_FREE = -1
_BASE = 0  # place of rows without an adapter
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The columns of a layer that a pass reads, and which of these each row does not."""

    columns: slice | Tensor
    is_other: Tensor | None  # (B, N); None: all rows read all

    @classmethod
    def of(
        cls, columns_of: Sequence[tuple[str, int]], by_row: Sequence[str | None], device: str
    ) -> "RowLayout | None":
        """Return the layout for adapters with so many columns each, or None if no row has one."""
        columns: list[int] = []
        owners: list[str] = []
        start = 0
        for adapter, num_columns in columns_of:
            if adapter in by_row:
                columns += range(start, start + num_columns)
                owners += [adapter] * num_columns
            start += num_columns
        if not columns:
            return None
        # None is a place, too: that of the base
        is_other = np.array(by_row, object)[:, None] != np.array(owners, object)
        are_consecutive = columns == [*range(columns[0], columns[-1] + 1)]
        return cls(
            slice(columns[0], columns[-1] + 1) if are_consecutive else to_device(columns, device),
            array_to_device(is_other, device) if is_other.any() else None,
        )


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

    def __call__(self, hidden_states: Tensor, layout: RowLayout) -> Tensor:
        """Return float32 (B, T, out) of (B, T, in)."""
        ranks = linear(hidden_states.float(), self.down[layout.columns])
        if layout.is_other is not None:
            by_column = ranks.view(*hidden_states.shape[:2], -1, self.num_joined)
            by_column.masked_fill_(layout.is_other[:, None, :, None], 0.0)
        return ranks @ self.up[layout.columns]

    def put(self, columns: range, product: "LowRank | None") -> None:
        """Copy an adapter's product, if it has one for this layer, to its columns of the pool."""
        first = columns.start * self.num_joined
        stop = columns.stop * self.num_joined
        self.down[first:stop] = 0
        self.up[first:stop] = 0
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
        self._owners = torch.full((num_columns,), _FREE, device=device)  # place of the adapter
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
        self._owners[columns.start : columns.stop] = _place(columns)
        self._columns = {**self._columns, adapter: columns}

    def remove(self, adapter: str) -> None:
        others = dict(self._columns)
        columns = others.pop(adapter, range(0))
        self._columns = others
        self._owners[columns.start : columns.stop] = _FREE

    def places(self, by_row: Sequence[str | None]) -> list[int] | None:
        """Return the place of each row's adapter, or None if one has none."""
        places: list[int] = []
        for adapter in by_row:
            if adapter is None:
                places.append(_BASE)
            elif adapter in self._columns:
                places.append(_place(self._columns[adapter]))
            else:
                return None
        return places

    def layout(self, places: Tensor) -> RowLayout:
        """Return the layout of rows with `places` (B,): all columns."""
        return RowLayout(slice(None), places[:, None] != self._owners)


def _place(columns: range) -> int:
    return columns.start + 1


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """The adapters of one layer, outside of the pool: their columns follow each other."""

    columns: tuple[tuple[str, int], ...] = ()  # numbers of columns
    product: LowRank | None = None

    def with_adapter(self, adapter: str, product: LowRank) -> "LayerAdapters":
        columns = (*self.columns, (adapter, len(product.down)))
        if self.product is None:
            return LayerAdapters(columns, product)
        down = torch.cat([self.product.down, product.down])
        return LayerAdapters(columns, LowRank(down, torch.cat([self.product.up, product.up])))

    def without(self, adapter: str) -> "LayerAdapters":
        if self.product is None or adapter not in dict(self.columns):
            return self
        columns = tuple(column for column in self.columns if column[0] != adapter)
        if not columns:
            return LayerAdapters()
        rows: list[bool] = []
        for other, num_columns in self.columns:
            rows += [other != adapter] * num_columns
        of_others = torch.tensor(rows, device=self.product.down.device)
        product = LowRank(self.product.down[of_others], self.product.up[of_others])
        return LayerAdapters(columns, product)


@dataclass(slots=True)
class AdaptedLinear:
    """A linear layer over rows (B, T, in), with the adapters that change it."""

    base: Callable[[Tensor], Tensor]
    layers: Sequence[str]  # outputs are concatenated in this order
    sizes: Sequence[int]  # widths of these outputs
    width: int  # inputs
    adapters: "Adapters"
    pooled: LowRank | None = None
    # replaced as a whole, maybe by another thread: a pass reads it once
    layer_adapters: LayerAdapters = LayerAdapters()

    def __call__(self, hidden_states: Tensor) -> Tensor:
        output = self.base(hidden_states)
        layout = self.adapters.pool_layout
        product = self.pooled
        if layout is None:
            layer_adapters = self.layer_adapters
            layout = self.adapters.layout(layer_adapters.columns)
            product = layer_adapters.product
        if layout is None or product is None:
            return output
        return output.add_(product(hidden_states, layout))

    @property
    def column_bytes(self) -> int:
        return (self.width + sum(self.sizes)) * _FLOAT32_BYTES

    def num_bytes_with(self, tensors: Mapping[str, Tensor]) -> int:
        num_columns = sum(dict(self.layer_adapters.columns).values())
        for layer in self.layers:
            if layer + DOWN in tensors:
                num_columns += len(tensors[layer + DOWN])
        return num_columns * self.column_bytes

    def add(self, adapter: str, tensors: Mapping[str, Tensor], places: range | None) -> None:
        product = LowRank.joined(tensors, self.layers, self.sizes)
        if product is not None:
            self.layer_adapters = self.layer_adapters.with_adapter(adapter, product)
        if self.pooled is not None and places is not None:
            self.pooled.put(places, product)


class Adapters:
    """The adapters of one decoder, and those that the rows of the current pass use."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self.pool: AdapterPool | None = None
        self.pool_layout: RowLayout | None = None  # set for a captured pass with adapters
        self._layers: list[AdaptedLinear] = []
        self.keys = frozenset[str]()  # adapters that sequences may name
        self._by_row: Sequence[str | None] = ()
        # layouts of these rows, by the columns of a layer
        self._layouts: dict[tuple[tuple[str, int], ...], RowLayout | None] = {}

    def open_pool(self, max_columns: int, max_bytes: int) -> None:
        """Make the pool of captured passes: as many columns as `max_bytes` hold, or none."""
        column_bytes = sum(len(layer.sizes) * layer.column_bytes for layer in self._layers)
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
        """Copy an adapter's tensors to the layers of the loaded decoder.

        Raise `AdapterError` if values are not finite, and `NoRoomError` above `max_total_bytes`.
        """
        rank = 0
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise AdapterError(f"{name} has values that are not finite; train it again")
            if name.endswith(DOWN):
                rank = max(rank, len(tensor))
        num_bytes = self.num_bytes_with(tensors)
        if max_total_bytes is not None and num_bytes > max_total_bytes:
            raise NoRoomError(
                f"with it all adapters of its base would take {num_bytes / 1e6:g} MB;"
                f" {max_total_bytes / 1e6:g} MB are allowed (DIPTYCH_ADAPTERS_MB, on a GPU at most"
                " a quarter of its free memory)"
            )
        places = None if self.pool is None else self.pool.free_columns(rank)
        on_device = {name: tensor.to(self._device) for name, tensor in tensors.items()}
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
            layer.layer_adapters = layer.layer_adapters.without(adapter)
        if self.pool is not None:
            self.pool.remove(adapter)

    def select(self, by_row: Sequence[str | None]) -> None:
        """Set the adapter of each row for the next pass; `None` selects the base model."""
        self.pool_layout = None
        if self._by_row != by_row:
            self._by_row = list(by_row)
            self._layouts = {}

    def layout(self, columns: tuple[tuple[str, int], ...]) -> RowLayout | None:
        """Return the layout of the selected rows in a layer with these columns of adapters."""
        if not columns or not any(self._by_row):
            return None
        if columns not in self._layouts:
            self._layouts[columns] = RowLayout.of(columns, self._by_row, self._device)
        return self._layouts[columns]

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
