"""Products of adapters in mixed rows, their places in a pool, and the memory that they take."""

import math
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from runners.adapters.low_rank import AdaptedLinear, AdapterPool, Adapters
from runners.decoder.engines import EagerEngine
from runners.decoder.sequences import SequenceRequest
from runners.models.layers import linear_layer
from tests.support.fake_decoder import FakeDecoder
from wire.artifacts.manifest import ArtifactError

WIDTH = 6
SIZES = {"q": 4, "k": 5}
COLUMN_BYTES = 2 * (6 + 4 + 5) * 4


def tensors(rank: int, *layers: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    result: dict[str, Tensor] = {}
    for layer in layers:
        result[f"{layer}.down"] = torch.randn(rank, WIDTH, generator=generator)
        result[f"{layer}.up"] = torch.randn(SIZES[layer], rank, generator=generator)
    return result


def pooled_layer(num_columns: int) -> tuple[Adapters, AdapterPool, AdaptedLinear]:
    """Return a layer that joins two, open to adapters of a pool."""
    adapters = Adapters()
    base = linear_layer(torch.ones(sum(SIZES.values()), WIDTH), None, "float16")
    layer = adapters.over(base, list(SIZES), list(SIZES.values()), WIDTH)
    adapters.open_pool(num_columns, num_columns * COLUMN_BYTES)
    assert adapters.pool is not None
    return adapters, adapters.pool, layer


def outputs(adapters: Adapters, layer: AdaptedLinear, by_row: list[str | None]) -> list[Tensor]:
    """Return the outputs of rows by the pool, and by their adapters' own matrices."""
    assert adapters.pool is not None
    hidden_states = torch.randn(len(by_row), 1, WIDTH, generator=torch.Generator().manual_seed(0))
    result = []
    for is_captured in (True, False):
        adapters.select(by_row)
        if is_captured:
            places = adapters.pool.places(by_row)
            assert places is not None
            assert len(set(places)) == len(set(by_row))
            adapters.is_other = torch.tensor(places)[:, None] != adapters.pool.owners
        result.append(layer(hidden_states))
    return result


def test_rows_get_the_products_of_their_adapters_after_others_came_and_went() -> None:
    adapters, _, layer = pooled_layer(6)
    adapters.add("a", tensors(2, "q", "k"))
    adapters.add("b", tensors(3, "q"))
    adapters.remove("a")
    adapters.add("c", tensors(1, "k"))  # takes one column of the first, whose other is free
    captured, eager = outputs(adapters, layer, ["c", None, "b"])
    assert torch.allclose(captured, eager, atol=1e-5)
    adapters.add("d", tensors(1, "q", "k"))
    by_row = ["c", None, "b", "d", "c"]
    captured, eager = outputs(adapters, layer, by_row)
    assert torch.allclose(captured, eager, atol=1e-5)
    assert captured[1].equal(eager[1])  # the base's


def test_each_row_gets_base_and_its_own_products() -> None:
    """In every mixture: one adapter of several, consecutive columns or not, rows of the base."""
    adapters, _, layer = pooled_layer(6)
    stored = {key: tensors(rank, *SIZES) for rank, key in enumerate("abc", 1)}
    for key, pair_of in stored.items():
        adapters.add(key, pair_of)
    states = torch.randn(4, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    mixtures: list[list[str | None]] = [["b"] * 4, ["a", None, "c", "a"], ["b", "c", None, "b"]]
    for by_row in mixtures:
        adapters.select(by_row)
        expected = layer.base(states)
        for row, adapter in enumerate(by_row):
            if adapter is not None:
                pair_of = stored[adapter]
                parts = [
                    states[row] @ pair_of[f"{name}.down"].T @ pair_of[f"{name}.up"].T
                    for name in SIZES
                ]
                expected[row] += torch.cat(parts, dim=-1)
        torch.testing.assert_close(layer(states), expected)


def test_an_eager_pass_follows_a_captured_one() -> None:
    adapters, pool, layer = pooled_layer(4)
    adapters.add("large", tensors(5, "q"))  # has no place in the pool
    adapters.is_other = pool.owners[None] != 0
    states = torch.ones(1, 1, WIDTH)
    assert layer(states).equal(layer.base(states))
    adapters.select(["large"])
    assert not layer(states).equal(layer.base(states))


def test_a_pass_has_no_rows_of_an_adapter_that_is_gone() -> None:
    """It would get them again while it is added again."""
    decoder = FakeDecoder()
    engine = EagerEngine(decoder, 2)
    base = SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens=4)
    passes = [partial(engine.decode, [[5]]), partial(engine.prefill, [base], 1)]
    engine.prefill([base], 0)
    for later in passes:
        decoder.adapters.add("a", {})
        engine.prefill([replace(base, adapter="a")], 1)
        assert decoder.adapters.rows == {"a": slice(None)}
        decoder.adapters.remove("a")
        later()
        assert decoder.adapters.rows == {}


def test_an_adapter_for_which_no_columns_are_free_has_no_place() -> None:
    adapters, pool, _ = pooled_layer(4)
    adapters.add("large", tensors(5, "q"))
    adapters.add("a", tensors(3, "q"))
    adapters.add("b", tensors(2, "q"))
    assert [pool.places([key, None]) is None for key in ("large", "a", "b")] == [True, False, True]
    adapters.remove("a")
    assert pool.places(["a"]) is None
    adapters.add("c", tensors(1, "k"))
    adapters.add("d", tensors(3, "k"))
    adapters.remove("c")
    adapters.add("e", tensors(1, "k"))  # fits exactly before another
    assert pool.places(["d", "e"]) is not None


def test_an_adapter_without_room_changes_nothing() -> None:
    adapters = Adapters()
    joined = adapters.over(linear_layer(torch.zeros(9, 6), None, "float16"), ["q", "k"], [4, 5], 6)
    num_columns = 0
    for key, added, rank in [
        ("a", tensors(2, "q"), 2),
        ("b", tensors(1, "q", "k"), 2),
        ("c", tensors(3, "q", "k"), 6),
    ]:
        num_columns += rank
        needed_bytes = num_columns * (6 + 4 + 5) * 4
        before = dict(joined.products)
        with pytest.raises(ArtifactError, match="on a GPU at most a quarter"):
            adapters.add(key, added, needed_bytes - 1)
        assert joined.products == before
        assert key not in adapters.keys
        adapters.add(key, added, needed_bytes)
        products = joined.products.values()
        assert sum(one.down.nbytes + one.up.nbytes for one in products) == needed_bytes
    elsewhere = {"v.down": torch.ones(9, WIDTH), "v.up": torch.ones(4, 9)}
    adapters.add("elsewhere", elsewhere, needed_bytes)


def test_an_adapter_that_fails_in_one_layer_leaves_no_weights_in_the_others() -> None:
    adapters = Adapters()
    base = linear_layer(torch.zeros(4, 6), None, "float16")
    layers = [adapters.over(base, ["q"], [4], 6), adapters.over(base, ["k"], [6], 6)]
    with pytest.raises(RuntimeError):
        adapters.add("a", tensors(2, "q", "k"))  # the second has 5 outputs
    assert [layer.products for layer in layers] == [{}, {}]
    assert adapters.keys == frozenset()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_with_values_that_are_not_finite_is_refused(value: float) -> None:
    """Its products, times a masked zero, would reach the rows of others."""
    adapters = Adapters()
    adapters.over(linear_layer(torch.zeros(4, 6), None, "float16"), ["q"], [4], 6)
    poisoned = tensors(2, "q")
    poisoned["q.up"][1, 1] = value
    with pytest.raises(ArtifactError, match=r"q\.up has values that are not finite"):
        adapters.add("a", poisoned)
    assert adapters.keys == frozenset()


def test_a_removed_adapter_leaves_no_weights() -> None:
    adapters = Adapters()
    linear = adapters.over(linear_layer(torch.zeros(4, 6), None, "float16"), ["q"], [4], 6)
    for key, rank in (("a", 2), ("b", 1), ("c", 3)):
        adapters.add(key, tensors(rank, "q"))
    freed = weakref.ref(linear.products["b"].down)
    adapters.remove("b")
    assert freed() is None
    assert linear.products.keys() == {"a", "c"}
