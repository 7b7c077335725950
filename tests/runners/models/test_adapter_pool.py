"""Places of adapters in fixed memory: which columns they get, and the products of mixed rows."""

import torch
from torch import Tensor

from runners.adapters.low_rank import AdaptedLinear, AdapterPool, Adapters
from runners.models.layers import FloatLinear

WIDTH = 6
SIZES = {"q": 4, "k": 5}
COLUMN_BYTES = 2 * (6 + 4 + 5) * 4


def tensors(rank: int, *layers: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    found: dict[str, Tensor] = {}
    for layer in layers:
        found[f"{layer}.down"] = torch.randn(rank, WIDTH, generator=generator)
        found[f"{layer}.up"] = torch.randn(SIZES[layer], rank, generator=generator)
    return found


def pooled_layer(num_columns: int) -> tuple[Adapters, AdapterPool, AdaptedLinear]:
    """Return a layer that joins two, open to adapters of a pool."""
    adapters = Adapters()
    base = FloatLinear(torch.ones(sum(SIZES.values()), WIDTH), None)
    layer = adapters.over(base, list(SIZES), list(SIZES.values()), WIDTH)
    adapters.open_pool(num_columns, num_columns * COLUMN_BYTES)
    assert adapters.pool is not None
    return adapters, adapters.pool, layer


def outputs(adapters: Adapters, layer: AdaptedLinear, by_row: list[str | None]) -> list[Tensor]:
    """Return the outputs of rows by the pool, and by their adapters' own matrices."""
    assert adapters.pool is not None
    hidden_states = torch.randn(len(by_row), 1, WIDTH, generator=torch.Generator().manual_seed(0))
    found = []
    for is_captured in (True, False):
        adapters.select(by_row)
        if is_captured:
            adapters.select_places(torch.tensor(adapters.pool.places(by_row)))
        found.append(layer(hidden_states))
    return found


def test_rows_get_the_products_of_their_adapters_after_others_came_and_went() -> None:
    adapters, pool, layer = pooled_layer(6)
    adapters.add("a", tensors(2, "q", "k"))
    adapters.add("b", tensors(3, "q"))
    adapters.remove("a")
    adapters.add("c", tensors(1, "k"))  # takes the columns of the first
    adapters.add("d", tensors(1, "q", "k"))
    by_row = ["c", None, "b", "d", "c"]
    assert pool.have_places(by_row)
    assert len(set(pool.places(by_row))) == 4
    captured, eager = outputs(adapters, layer, by_row)
    assert torch.allclose(captured, eager, atol=1e-5)
    assert captured[1].equal(eager[1])  # the base's


def test_an_adapter_for_which_no_columns_are_free_has_no_place() -> None:
    adapters, pool, _ = pooled_layer(4)
    adapters.add("large", tensors(5, "q"))
    adapters.add("a", tensors(3, "q"))
    adapters.add("b", tensors(2, "q"))
    assert [pool.have_places([key, None]) for key in ("large", "a", "b")] == [False, True, False]
    adapters.remove("a")
    assert not pool.have_places(["a"])
    adapters.add("c", tensors(4, "k"))
    assert pool.have_places(["c"])
