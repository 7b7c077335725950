"""The adapters of captured passes: places in fixed memory, which rows select by number.

Problem: a captured pass has fixed shapes and addresses, while adapters of any rank come and go.

Solution: an adapter takes as many columns of a pool as its rank, one after another. A pass computes
the products of all columns for all rows, and masks those of other adapters between both matrices.
Rows of the base mask all. One pair of matrices holds the columns of a layer; layers that are joined
have that many columns for each of the pool.

Invariants:
- an adapter without a place is not in captured passes: there are too few free columns, or it has
  values that are not finite, whose products with a masked zero would reach other rows;
- columns are written while no row selects them.

Shapes: B rows, T tokens of a row, N columns, J joined layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from wire.artifacts.adapter_folder import DOWN

POOL_RANK = 128  # most columns on a GPU; a step with adapters reads all of them
_FREE = -1
_BASE = 0  # place of rows without an adapter


@dataclass(frozen=True, slots=True)
class PooledRanks:
    """The columns of one layer, which joins `num_joined`."""

    down: Tensor  # (N * J, in)
    up: Tensor  # (N * J, out)
    num_joined: int

    def put(self, columns: range, down: Tensor, up: Tensor) -> None:
        """Copy an adapter's matrices (up to J * rank, in) and (likewise, out) to its columns."""
        first = columns.start * self.num_joined
        for memory, own in ((self.down, down), (self.up, up)):
            memory[first : columns.stop * self.num_joined] = 0
            memory[first : first + len(own)] = own

    def __call__(self, hidden_states: Tensor, is_other: Tensor) -> Tensor:
        """Return float32 (B, T, out) of (B, T, in), without the columns `is_other` (B, N)."""
        ranks = linear(hidden_states.float(), self.down)
        by_column = ranks.view(*hidden_states.shape[:2], -1, self.num_joined)
        by_column.masked_fill_(is_other[:, None, :, None], 0.0)
        return ranks @ self.up


class AdapterPool:
    """The columns of all layers, and the adapter that each belongs to."""

    def __init__(self, num_columns: int, device: str) -> None:
        self.num_columns = num_columns
        self.num_bytes = 0
        self._device = device
        self._owners = torch.full((num_columns,), _FREE, device=device)  # place of the adapter
        self._columns: dict[str, range] = {}

    def layer(self, width: int, sizes: Sequence[int]) -> PooledRanks:
        """Return the columns of a layer with inputs of `width` and joined outputs of `sizes`."""
        num = self.num_columns * len(sizes)
        down = torch.zeros(num, width, device=self._device)
        up = torch.zeros(num, sum(sizes), device=self._device)
        self.num_bytes += down.nbytes + up.nbytes
        return PooledRanks(down, up, len(sizes))

    def free_columns(self, tensors: Mapping[str, Tensor]) -> range | None:
        """Return columns for an adapter, or None if it gets no place."""
        rank = max((len(each) for name, each in tensors.items() if name.endswith(DOWN)), default=0)
        start = 0
        for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
            if start + rank <= taken.start:
                break
            start = taken.stop
        if start + rank > self.num_columns:
            return None
        return range(start, start + rank) if _are_finite(tensors) else None

    def add(self, adapter: str, columns: range) -> None:
        """Open an adapter to rows; its matrices are in `columns` of all layers."""
        self._owners[columns.start : columns.stop] = _place(columns)
        self._columns = {**self._columns, adapter: columns}

    def remove(self, adapter: str) -> None:
        """Free the columns of an adapter, if it has any."""
        others = dict(self._columns)
        columns = others.pop(adapter, range(0))
        self._columns = others
        self._owners[columns.start : columns.stop] = _FREE

    def have_places(self, by_row: Sequence[str | None]) -> bool:
        """Return True if the adapters of all rows have places."""
        return all(adapter is None or adapter in self._columns for adapter in by_row)

    def places(self, by_row: Sequence[str | None]) -> list[int]:
        """Return the place of each row's adapter."""
        places = {adapter: _place(columns) for adapter, columns in self._columns.items()}
        return [_BASE if adapter is None else places.get(adapter, _BASE) for adapter in by_row]

    def is_other(self, places: Tensor) -> Tensor:
        """Return the columns (B, N) that the rows with `places` (B,) do not read."""
        return places[:, None] != self._owners


def _place(columns: range) -> int:
    return columns.start + 1


def _are_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
