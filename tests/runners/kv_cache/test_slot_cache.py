"""Slots of a cache, with and without prefixes: lengths, keys and adapters stay together."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runners.kv_cache.memory import DecoderShape
from runners.kv_cache.slot_cache import SlotCache
from tests.support.fake_decoder import FAKE_SHAPE

SHAPES = [replace(FAKE_SHAPE, num_positions=8, has_prefixes=each) for each in (False, True)]


def written(cache: SlotCache, tokens: list[list[int]], first_slot: int = 0) -> None:
    """Store tokens as a pass does: each is its own key and value."""
    places = cache.places(tokens, first_slot)
    keys = places.token_ids[..., None, None, None].float().expand(-1, -1, 2, 1, 1)
    cache.self_attention.append(0, places.rows(), places.positions, keys)
    cache.grow(range(first_slot, first_slot + len(tokens)))


def held(cache: SlotCache, slot: int, start: int) -> list[int]:
    """Return the tokens that a slot holds from `start` on."""
    keys, values = cache.self_attention.read(0, slice(slot, slot + 1), 8)
    assert torch.equal(keys, values)
    (length,) = cache.num_tokens.of([slot])
    own: Tensor = keys[0, 0, start:length, 0]
    return own.int().tolist()


def begun(cache: SlotCache) -> int:
    """Give three slots to sequences with prefixes of 2 tokens; return where answers start."""
    cache.begin([[0], [1], [2]], [2, 2, 2], ["a", None, "b"])
    return cache.num_tokens.of([0])[0]


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "with prefixes"])
def test_accepted_tokens_stay_and_rolled_back_ones_are_zeroed(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 3)
    start = begun(cache)
    written(cache, [[5, 6, 7], [8], [9, 10]])
    cache.accept([0, 2], [2, 1])
    assert [held(cache, slot, start) for slot in range(3)] == [[5, 6, 7], [8], [9, 10]]
    cache.roll_back(0)
    assert held(cache, 0, start) == [5, 6]
    keys, _ = cache.self_attention.read(0, slice(0, 1), 8)
    assert not keys[0, 0, start + 2 :].any()


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "with prefixes"])
def test_a_freed_slot_gets_the_last_sequence_with_its_adapter(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 3)
    start = begun(cache)
    written(cache, [[5], [6], [7]])
    cache.free(0, 2)
    assert [held(cache, slot, start) for slot in range(2)] == [[7], [6]]
    assert cache.adapters[:2] == ["b", None]
    if cache.prefixes is not None:
        assert [cache.prefixes.table.of(slot) for slot in range(2)] == [0, 1]
    cache.clear(1)
    assert held(cache, 1, start) == [0]


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "with prefixes"])
def test_beams_continue_each_other(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 4)
    cache.begin([[0, 1, 2]], [2], ["a"])
    (start,) = cache.num_tokens.of([0])
    written(cache, [[5]])
    cache.add_beams({0: [1, 2]})
    assert cache.adapters[:3] == ["a"] * 3
    assert cache.shared_prefixes(3) == ((1, 3) if cache.prefixes else (0, 1))
    written(cache, [[6], [7], [8]])
    cache.reorder([1, 0], [0, 1])
    assert [held(cache, slot, start) for slot in range(3)] == [[5, 7], [5, 6], [5, 8]]
    cache.reorder([2, 2], [0, 1], torch.tensor([[2, 2], [0, 1]]))
    assert [held(cache, slot, start) for slot in range(3)] == [[5, 8]] * 3


@pytest.mark.parametrize("shape", SHAPES, ids=["joint", "with prefixes"])
def test_a_pass_of_fixed_shape_has_the_places_of_its_tokens_within_its_length(
    shape: DecoderShape,
) -> None:
    cache = SlotCache(shape, 3)
    begun(cache)
    own = cache.places([[5], [6], [7]])
    fixed = cache.fixed_places(torch.tensor([5, 6, 7]), 8, 0, 4)
    assert torch.equal(own.token_ids, fixed.token_ids)
    assert torch.equal(own.positions, fixed.positions)
    assert (own.length, fixed.length) == (1 + int(own.positions.max()), 8)
    cache.num_tokens.set([1], [8])  # a full slot
    assert int(cache.fixed_places(torch.tensor([5, 6, 7]), 8, 0, 4).positions.max()) == 7
