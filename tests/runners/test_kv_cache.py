"""Slots and prefixes: keys, values, lengths and adapters stay with their sequence, in any order of
calls.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain
from random import Random

import pytest
import torch
from torch import Tensor

from runners.decoder.batch import SlotTable
from runners.errors import SequenceError
from runners.kv_cache import (
    DecoderShape,
    KeyValueCache,
    PrefixCache,
    PrefixReads,
    SlotCache,
    SlotLengths,
    TokenPlaces,
)
from tests.support.fake_decoder import FAKE_SHAPE

NUM_SLOTS = 9
SHAPE = replace(FAKE_SHAPE, num_layers=2, num_heads=2, num_positions=5, head_size=3)
SHAPES = [replace(FAKE_SHAPE, num_positions=8, has_prefixes=value) for value in (False, True)]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=["joint", "with prefixes"])
ALL = slice(0, 4)


def filled() -> KeyValueCache:
    """Return a cache of different numbers."""
    cache = KeyValueCache(SHAPE, 4)
    cache._memory.copy_(torch.arange(cache._memory.numel()).view(cache._memory.shape))
    return cache


@pytest.mark.parametrize(("sources", "targets"), [([3], [1]), ([3, 2], [1, 0]), ([0, 1], [1, 0])])
def test_copied_slots_equal_their_sources_before(sources: list[int], targets: list[int]) -> None:
    cache = filled()
    expected = cache._memory.clone()
    expected[:, :, targets, :, 1:4] = expected[:, :, sources, :, 1:4].clone()
    cache.copy_pairs(torch.tensor([sources, targets]), slice(1, 4))
    assert torch.equal(cache._memory, expected)
    expected[:, :, 2, :, :3] = expected[:, :, 0, :, :3]
    cache.copy(0, 2, slice(0, 3))
    assert torch.equal(cache._memory, expected)


@pytest.mark.parametrize("slots", [slice(1, 3), torch.tensor([1, 2])], ids=["slice", "numbers"])
def test_tokens_are_stored_at_their_positions(slots: slice | Tensor) -> None:
    cache = filled()
    positions = torch.tensor([[0, 3], [2, 1]])
    stored = torch.rand(2, 2, 2, 2, 3)  # two tokens of two rows
    expected = cache._memory.clone()
    for row in range(2):
        for token in range(2):
            expected[1, :, row + 1, :, positions[row, token]] = stored[row, token]
    places = TokenPlaces(torch.zeros(2, 2, dtype=torch.long), slots, positions, 4)
    read = cache.extend(1, places, stored)
    assert torch.equal(cache._memory, expected)
    assert torch.equal(torch.stack(read), expected[1, :, 1:3, :, :4])


def test_slot_bytes_are_those_of_keys_and_values() -> None:
    assert 4 * SHAPE.slot_bytes == filled()._memory.nbytes
    assert 2 * replace(SHAPE, dtype=torch.bfloat16).slot_bytes == SHAPE.slot_bytes
    assert replace(SHAPE, has_prefixes=True).slot_bytes == 2 * SHAPE.slot_bytes
    cache = KeyValueCache(replace(SHAPE, dtype=torch.bfloat16), 4)
    assert cache._memory.dtype == torch.bfloat16
    assert not cache._memory.any()


@pytest.mark.parametrize(("has_prefixes", "limit", "left"), [(False, 4, 1), (True, 5, 5)])
def test_image_and_prompt_leave_room_for_a_token(has_prefixes: bool, limit: int, left: int) -> None:
    shape = replace(SHAPE, has_prefixes=has_prefixes)
    assert shape.max_new_tokens(limit) == left
    with pytest.raises(SequenceError, match=f"have {limit + 1} tokens; at most {limit} are"):
        shape.max_new_tokens(limit + 1)


def test_lengths_are_equal_on_host_and_device() -> None:
    lengths = SlotLengths(4, torch.device("cpu"))

    def check(*expected: int) -> None:
        assert lengths.on_host == lengths.on_device.tolist() == list(expected)

    lengths.set([1, 3], [5, 7])
    check(0, 5, 0, 7)
    lengths.increment(range(3))
    check(1, 6, 1, 7)
    lengths.copy(3, 0)
    check(7, 6, 1, 7)


def add(prefixes: PrefixCache, *slots: int, name: int = 0) -> int:
    """Add a prefix whose first key is its name, on the host and on the device."""
    length = 1 + name % 9
    prefix = prefixes.add(slots, length)
    places = torch.arange(len(slots))
    prefixes.write(
        torch.tensor(slots), torch.full_like(places, prefix), places, torch.tensor(length)
    )
    prefixes.memory.write_prefix(0, slice(prefix, prefix + 1), torch.full((1, 1, 2, 1, 1), name))
    return prefix


class Sequences:
    """Prefixes whose slots are those of a table, as in a batch."""

    def __init__(self) -> None:
        self.prefixes = PrefixCache(FAKE_SHAPE, NUM_SLOTS)
        self.table = SlotTable[int]()
        self.rows: dict[int, tuple[int, int]] = {}  # sequence and row in each slot
        self.num_admitted = 0

    def admit(self, num_beams: int) -> None:
        self.num_admitted += 1
        self.table.take(self.num_admitted)
        self.table.take(self.num_admitted, num_beams - 1)
        slots = self.table.of[self.num_admitted]
        self.rows |= {slot: (self.num_admitted, row) for row, slot in enumerate(slots)}
        add(self.prefixes, *slots, name=self.num_admitted)

    def remove(self, name: int) -> None:
        """Free all slots of a sequence; the last slot moves into each."""
        for freed in self.table.free(name):
            self.prefixes.release(freed.slot)
            self.rows[freed.slot] = self.rows[freed.last]
            del self.rows[freed.last]
            if freed.moved is not None:
                self.prefixes.move(freed.last, freed.slot)

    def check(self) -> None:
        """Compare what each row reads, on the host and on the device."""
        prefixes = self.prefixes
        owners = self.table.by_slot
        for name, slots in self.table.of.items():
            assert [self.rows[slot] for slot in slots] == [(name, row) for row in range(len(slots))]
        stored = prefixes.memory._memory[0, 0, :, 0, 0, 0]
        assert stored[prefixes.of_slot[: len(owners)]].tolist() == owners
        counts = Counter(owners)
        assert prefixes.num_prefixes == len(counts)
        lengths = [1 + int(name) % 9 for name in stored[: len(counts)]]
        assert prefixes.lengths.on_host[: len(counts)] == lengths
        assert prefixes.lengths.on_device[: len(counts)].tolist() == lengths
        reads = prefixes.reads(slice(0, len(owners)))
        assert isinstance(reads.prefixes, slice)
        assert reads.length == max(lengths)
        if reads.rows is None or reads.places is None:
            assert stored[reads.prefixes].tolist() == owners
            return
        assert reads.prefixes == slice(0, len(counts))
        width = reads.rows.shape[1]
        assert width >= max(counts.values())
        by_place = stored[: len(counts)].repeat_interleave(width)
        for row, place in enumerate(reads.places.tolist()):
            assert reads.rows.flatten()[place] == row
            assert by_place[place] == owners[row]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_reads_the_prefix_of_its_sequence(seed: int) -> None:
    random = Random(seed)
    sequences = Sequences()
    num_grouped = 0
    for _ in range(80):
        num_beams = random.choice([1, 1, 3, 4])
        if random.random() < 0.6 and num_beams + len(sequences.table.by_slot) <= NUM_SLOTS:
            sequences.admit(num_beams)
        elif sequences.table.of:
            sequences.remove(random.choice(list(sequences.table.of)))
            sequences.remove(0)  # one without slots
        if sequences.table.of:
            sequences.check()
            reads = sequences.prefixes.reads(slice(0, len(sequences.table.by_slot)))
            num_grouped += reads.rows is not None
    assert num_grouped > 10


def test_rows_beyond_those_in_use_read_what_exists() -> None:
    sequences = Sequences()
    for num_beams in (1, 3, 1, 4):
        sequences.admit(num_beams)
    for name in (1, 4):
        sequences.remove(name)
    reads = sequences.prefixes.grouped(4, 2, 8, 1)
    assert reads.rows is not None
    assert reads.places is not None
    assert (reads.rows.shape, reads.places.shape) == ((2, 8), (4,))
    assert int(reads.rows.max()) < 4
    assert int(reads.places.max()) < 16


def test_a_failed_prefill_leaves_no_prefix() -> None:
    prefixes = PrefixCache(FAKE_SHAPE, NUM_SLOTS)
    for slot in range(3):
        add(prefixes, slot)
    assert prefixes.reads(slice(1, 3)) == PrefixReads(slice(1, 3), 1)  # consecutive: not grouped
    prefixes.release(3)  # a slot whose prefill failed before it had a prefix
    assert (prefixes.of_slot[:3], prefixes.num_prefixes) == ([0, 1, 2], 3)
    add(prefixes, 0, 1, 2)  # after a failed step, all slots are free
    assert (prefixes.of_slot[:3], prefixes.num_prefixes) == ([0, 0, 0], 1)


def write(cache: SlotCache, tokens: list[list[int]]) -> None:
    """Store tokens as a pass does: each is its own key and value."""
    places = cache.places(tokens)
    keys = places.token_ids[..., None, None, None].float().expand(-1, -1, 2, 1, 1)
    cache.self_attention.extend(0, places, keys)
    cache.num_tokens.increment(range(len(tokens)))


def claim(cache: SlotCache, slots: list[list[int]], *adapters: str | None) -> None:
    """Start sequences with prefixes of 2 tokens."""
    claimed = cache.claim(slots, [2] * len(slots), adapters)
    cache.write_claimed(torch.tensor(list(chain.from_iterable(claimed))))


def tokens_of(cache: SlotCache, slot: int) -> list[int]:
    """Return the tokens that a slot holds from the start of its answer."""
    keys, values = cache.self_attention.read(0, slice(slot, slot + 1), 8)
    assert torch.equal(keys, values)
    length = cache.num_tokens.on_host[slot]
    assert length == cache.num_tokens.on_device[slot]
    tokens: list[int] = keys[0, 0, cache._starts[slot] : length, 0].int().tolist()
    return tokens


@pytest.fixture(params=SHAPES, ids=["joint", "with prefixes"])
def cache(request: pytest.FixtureRequest) -> SlotCache:
    """Three slots of sequences with prefixes of 2 tokens."""
    slots = SlotCache(request.param, 3)
    claim(slots, [[0], [1], [2]], "a", None, "b")
    return slots


def test_accepted_tokens_stay_and_rolled_back_ones_are_zeroed(cache: SlotCache) -> None:
    write(cache, [[5, 6, 7], [8], [9, 10]])
    cache.accept({0: 2, 2: 1})
    assert [tokens_of(cache, slot) for slot in range(3)] == [[5, 6, 7], [8], [9, 10]]
    cache.roll_back(0)
    assert tokens_of(cache, 0) == [5, 6]
    assert 7 not in cache.self_attention._memory[:, :, 0]
    cache.self_attention._memory.fill_(1)
    cache.num_tokens.set([1], [9])  # a full slot, whose last token was overwritten
    cache.roll_back(1)
    assert cache.num_tokens.on_host[1] == 8
    assert cache.self_attention._memory[0, 0, 1, 0, :, 0].tolist() == [1] * 7 + [0]


def test_a_freed_slot_gets_the_last_sequence_with_its_adapter(cache: SlotCache) -> None:
    write(cache, [[5], [6], [7]])
    cache.free(0, 2)
    assert [tokens_of(cache, slot) for slot in range(2)] == [[7], [6]]
    assert cache.adapters[:2] == ["b", None]
    if cache.prefixes is not None:
        assert cache.prefixes.of_slot[:2] == [0, 1]
        cache.prefixes.memory._memory.fill_(1)
    cache.clear(1)
    assert tokens_of(cache, 1) == [0]
    assert tokens_of(cache, 0) == [7]
    if cache.prefixes is not None:
        assert cache.prefixes.memory._memory[0, 0, :3, 0, 0, 0].tolist() == [1, 0, 1]


@by_shape
def test_a_moved_sequence_keeps_the_start_of_its_answer(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 3)
    claimed = cache.claim([[0], [1, 2]], [4, 2], [None, None])
    cache.write_claimed(torch.tensor(list(chain.from_iterable(claimed))))
    write(cache, [[5], [6], [7]])
    cache.free(0, 2)
    cache.reorder([0, 1], [1, 0])
    assert [tokens_of(cache, slot) for slot in range(2)] == [[6], [7]]


@by_shape
def test_beams_continue_each_other(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 4)
    claim(cache, [[0, 1, 2]], "a")
    write(cache, [[5]])
    cache.num_tokens.increment(range(1, 3))
    cache.add_beams([[0, 1, 2]])
    assert cache.adapters[:3] == ["a"] * 3
    assert cache.shared_prefixes(3) == ((1, 3) if cache.prefixes else (0, 1))
    write(cache, [[6], [7], [8]])
    cache.reorder([1, 0], [0, 1])
    assert [tokens_of(cache, slot) for slot in range(3)] == [[5, 7], [5, 6], [5, 8]]
    cache.reorder([2, 2], [0, 1], torch.tensor([[2, 2], [0, 1]]))
    assert [tokens_of(cache, slot) for slot in range(3)] == [[5, 8]] * 3


@by_shape
def test_beams_of_shorter_prompts_move_whole(shape: DecoderShape) -> None:
    cache = SlotCache(shape, 4)
    claimed = cache.claim([[0, 1], [2, 3]], [2, 4], [None, None])
    cache.write_claimed(torch.tensor(list(chain.from_iterable(claimed))))
    write(cache, [[5], [6], [7], [8]])
    cache.reorder([1, 0, 3, 2], [0, 1, 2, 3])
    assert [tokens_of(cache, slot) for slot in range(4)] == [[6], [5], [8], [7]]


def test_fixed_places_are_those_of_the_tokens_within_the_length(cache: SlotCache) -> None:
    places = cache.places([[5], [6], [7]])
    fixed = cache.fixed_places(torch.tensor([5, 6, 7]), 8, 0, 4)
    assert torch.equal(places.token_ids, fixed.token_ids)
    assert torch.equal(places.positions, fixed.positions)
    assert (places.length, fixed.length) == (1 + int(places.positions.max()), 8)
    cache.num_tokens.set([1], [8])  # a full slot
    assert int(cache.fixed_places(torch.tensor([5, 6, 7]), 8, 0, 4).positions.max()) == 7
