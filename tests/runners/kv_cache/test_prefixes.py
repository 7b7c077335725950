"""The table of shared prefixes against a plain model of it: who reads which prefix, after any order
of calls.
"""

from collections import Counter
from itertools import chain
from random import Random

import pytest
import torch

from runners.kv_cache.slot_cache import PrefixReads, PrefixTable

NUM_SLOTS = 9
CPU = torch.device("cpu")


class Sequences:
    """The slots of live sequences as the batch keeps them, and the prefix of each, named after its
    sequence.
    """

    def __init__(self) -> None:
        self.table = PrefixTable(NUM_SLOTS, CPU)
        self.owners: list[int] = []  # index: slot
        self.stored: dict[int, int] = {}  # the sequence whose prefix has each number
        self.num_admitted = 0

    def admit(self, all_beams: list[int]) -> None:
        """Add sequences, each with as many beams."""
        first = len(self.owners)
        names = range(self.num_admitted, self.num_admitted + len(all_beams))
        self.num_admitted += len(all_beams)
        self.owners += names
        for name, slot, num_beams in zip(
            names, range(first, first + len(names)), all_beams, strict=True
        ):
            beams = range(len(self.owners), len(self.owners) + num_beams - 1)
            self.owners += [name] * len(beams)
            self.stored[added(self.table, slot, *beams)] = name

    def remove(self, name: int) -> None:
        """Free all slots of a sequence; the last slot moves into each."""
        for slot in sorted(
            (slot for slot, owner in enumerate(self.owners) if owner == name), reverse=True
        ):
            last = len(self.owners) - 1
            moved = self.table.release(slot)
            if moved is not None:
                self.stored[moved[1]] = self.stored[moved[0]]
            owner = self.owners.pop()
            if slot != last:
                self.table.move(last, slot)
                self.owners[slot] = owner

    def check(self) -> None:
        """Compare what each row reads, on the host and on the device."""
        names = [self.stored[self.table.of(slot)] for slot in range(len(self.owners))]
        assert names == self.owners
        assert self.table.num_prefixes == len(set(self.owners))
        reads = self.table.reads(slice(0, len(self.owners)))
        assert isinstance(reads.prefixes, slice)
        if reads.rows is None or reads.places is None:
            assert names == [
                self.stored[prefix] for prefix in range(reads.prefixes.start, reads.prefixes.stop)
            ]
            return
        counts = Counter(self.owners)
        assert (reads.prefixes, reads.rows.shape[1]) >= (
            slice(0, len(counts)),
            max(counts.values()),
        )
        num_places = reads.rows.shape[1]
        stored = [[self.stored[prefix]] * num_places for prefix in range(len(counts))]
        by_place = list(chain.from_iterable(stored))
        for row, place in enumerate(reads.places.tolist()):
            assert reads.rows.flatten()[place] == row
            assert by_place[place] == names[row]


def added(table: PrefixTable, *slots: int) -> int:
    """Add a prefix that `slots` share, on the host and on the device; return its number."""
    prefix = table.add(slots)
    places = torch.arange(len(slots))
    table.write(torch.tensor(slots), torch.full_like(places, prefix), places)
    return prefix


@pytest.mark.parametrize("seed", range(20))
def test_every_row_reads_the_prefix_of_its_sequence(seed: int) -> None:
    random = Random(seed)
    sequences = Sequences()
    num_grouped = 0
    for _ in range(60):
        free = NUM_SLOTS - len(sequences.owners)
        all_beams: list[int] = []
        while random.random() < 0.6 and sum(all_beams) < free:
            all_beams.append(random.choice([1, 1, 3, 4]))
        if all_beams and sum(all_beams) <= free:
            sequences.admit(all_beams)
        elif sequences.owners:
            sequences.remove(random.choice(sequences.owners))
        if sequences.owners:
            sequences.check()
            num_grouped += sequences.table.own(slice(0, len(sequences.owners))) is None
    assert num_grouped > 10


def test_rows_of_consecutive_prefixes_are_not_grouped() -> None:
    table = PrefixTable(NUM_SLOTS, CPU)
    for slot in range(3):
        added(table, slot)
    assert table.reads(slice(1, 3)) == PrefixReads(slice(1, 3))


def test_rows_of_a_captured_step_beyond_those_in_use_read_what_exists() -> None:
    sequences = Sequences()
    sequences.admit([1, 3, 1, 4])
    for name in (0, 3):
        sequences.remove(name)
    reads = sequences.table.grouped(4, 2, 8)
    assert reads.rows is not None
    assert reads.places is not None
    assert (reads.rows.shape, reads.places.shape) == ((2, 8), (4,))
    assert int(reads.rows.max()) < 4
    assert int(reads.places.max()) < 16


def test_a_failed_prefill_leaves_no_prefix() -> None:
    table = PrefixTable(NUM_SLOTS, CPU)
    added(table, 0)
    added(table, 1)
    assert table.release(2) is None  # a slot whose prefill failed before it had a prefix
    assert (table.of(0), table.of(1), table.num_prefixes) == (0, 1, 2)
    added(table, 0, 1, 2)  # after a failed step, all slots are free
    assert (table.num_prefixes, [table.of(slot) for slot in range(3)]) == (1, [0, 0, 0])
