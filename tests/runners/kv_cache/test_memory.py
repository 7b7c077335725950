"""Slots of the key-value cache: each keeps its own keys, values and length, also when it is
copied.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runners.errors import SequenceError
from runners.kv_cache.memory import DecoderShape, KeyValueCache, SlotLengths

CPU = torch.device("cpu")
SHAPE = DecoderShape(
    num_layers=2,
    num_heads=2,
    num_positions=5,
    head_size=3,
    num_tokens=9,
    dtype=torch.float32,
    device=CPU,
)
ALL = slice(0, 4)


def filled() -> KeyValueCache:
    """Return a cache whose every number is its slot's, plus a tenth in values, plus 10 for each
    layer.
    """
    cache = KeyValueCache(SHAPE, 4)
    for layer in range(SHAPE.num_layers):
        keys = torch.arange(4.0)[:, None, None, None].expand(4, 5, 2, 3) + 10 * layer
        cache.write_prefix(layer, ALL, torch.stack([keys, keys + 0.1], dim=2))
    return cache


def by_slot(cache: KeyValueCache, layer: int) -> Tensor:
    """Return keys and values (2, slots, positions) of one head and dimension; all must be equal."""
    both = torch.stack(cache.read(layer, ALL, SHAPE.num_positions))
    assert (both == both[:, :, :1, :, :1]).all()
    return both[:, :, 0, :, 0]


def test_a_new_cache_is_zero_and_of_its_dtype() -> None:
    cache = KeyValueCache(replace(SHAPE, dtype=torch.bfloat16), 4)
    keys, values = cache.read(0, ALL, 5)
    assert keys.shape == values.shape == (4, 2, 5, 3)
    assert keys.dtype == torch.bfloat16
    assert not keys.any()
    assert not values.any()


@pytest.mark.parametrize("is_on_device", [False, True])
@pytest.mark.parametrize(("sources", "targets"), [([3], [1]), ([3, 2], [1, 0]), ([0, 1], [1, 0])])
def test_copied_slots_have_the_positions_of_their_sources_before_the_copy(
    sources: list[int], targets: list[int], is_on_device: bool
) -> None:
    cache = filled()
    expected = [by_slot(cache, layer).clone() for layer in (0, 1)]
    for before in expected:
        before[:, targets, 1:4] = before[:, sources, 1:4].clone()
    cache.copy(
        sources, targets, slice(1, 4), torch.tensor([sources, targets]) if is_on_device else None
    )
    for layer in (0, 1):
        assert torch.equal(by_slot(cache, layer), expected[layer])


def test_appended_tokens_are_at_the_positions_of_their_rows() -> None:
    cache = filled()
    positions = ([0, 4], [2, 3])
    given = torch.rand(2, 2, 2, 2, 3)  # two tokens of two rows
    cache.append(1, torch.tensor([[1], [2]]), torch.tensor(positions), given)
    expected = torch.stack(filled().read(1, ALL, 5))
    for row, own in enumerate(positions):
        for token, position in enumerate(own):
            expected[:, row + 1, :, position] = given[row, token]
    assert torch.equal(torch.stack(cache.read(1, ALL, 5)), expected)
    assert torch.equal(by_slot(cache, 0), by_slot(filled(), 0))


def test_a_prefix_is_at_the_first_positions_of_its_slots() -> None:
    cache = filled()
    given = torch.rand(2, 3, 2, 2, 3)
    cache.write_prefix(0, slice(2, 4), given)
    expected = torch.stack(filled().read(0, ALL, 5))
    expected[:, 2:4, :, :3] = given.permute(2, 0, 3, 1, 4)
    assert torch.equal(torch.stack(cache.read(0, ALL, 5)), expected)


def test_a_cleared_slot_is_zero_in_all_layers_and_the_others_are_not() -> None:
    cache = filled()
    cache.clear(2)
    for layer in (0, 1):
        now = by_slot(cache, layer)
        before = by_slot(filled(), layer)
        assert not now[:, 2].any()
        assert torch.equal(now[:, [0, 1, 3]], before[:, [0, 1, 3]])


def test_memory_is_that_of_keys_and_values() -> None:
    assert 4 * SHAPE.slot_bytes == filled().num_bytes
    assert filled().num_bytes == 4 * sum(
        each.numel() for layer in (0, 1) for each in filled().read(layer, ALL, 5)
    )
    halved = replace(SHAPE, dtype=torch.bfloat16)
    assert 2 * halved.slot_bytes == SHAPE.slot_bytes
    assert replace(SHAPE, has_prefixes=True).slot_bytes == 2 * SHAPE.slot_bytes


def test_lengths_are_the_same_on_host_and_device() -> None:
    lengths = SlotLengths(4, CPU)

    def check(*expected: int) -> None:
        assert lengths.of(range(4)) == lengths.on_device.tolist() == list(expected)

    check(0, 0, 0, 0)
    lengths.set([1, 3], [5, 7])
    check(0, 5, 0, 7)
    lengths.increment(range(3))
    check(1, 6, 1, 7)
    lengths.add([0, 3], [2, 1])
    check(3, 6, 1, 8)
    lengths.copy([3, 0], [0, 1])
    check(8, 3, 1, 8)


@pytest.mark.parametrize(("has_prefixes", "limit", "left"), [(False, 4, 1), (True, 5, 5)])
def test_image_and_prompt_leave_room_for_a_token(has_prefixes: bool, limit: int, left: int) -> None:
    shape = replace(SHAPE, has_prefixes=has_prefixes)
    assert shape.max_new_tokens(limit) == left
    with pytest.raises(SequenceError, match=f"have {limit + 1} tokens; at most {limit} are"):
        shape.max_new_tokens(limit + 1)
