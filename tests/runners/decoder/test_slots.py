"""Slots after any order of admissions and frees, against a model of their content."""

from random import Random

import pytest

from runners.decoder.batch import SlotTable

NUM_SLOTS = 9


@pytest.mark.parametrize("seed", range(10))
def test_applied_moves_keep_every_row_in_the_slot_that_the_table_names(seed: int) -> None:
    random = Random(seed)
    table = SlotTable[int]()
    content: list[tuple[int, int] | None] = [None] * NUM_SLOTS  # owner and row
    num_moved = 0
    for owner in range(60):
        num_rows = random.choice([1, 1, 3, 4])
        if num_rows + len(table.by_slot) <= NUM_SLOTS:
            first = table.take(owner)
            others = table.take(owner, num_rows - 1)
            for row, slot in enumerate([*first, *others]):
                content[slot] = (owner, row)
        elif table.of:
            gone = random.choice(list(table.of))
            for freed in table.free(gone):
                owner_and_row = content[freed.last]
                content[freed.last] = None
                if freed.moved is not None:
                    assert owner_and_row is not None
                    assert owner_and_row[0] == freed.moved != gone
                    content[freed.slot] = owner_and_row
                    num_moved += 1
        used = {slot: row for slot, row in enumerate(content) if row is not None}
        assert list(used) == list(range(len(table.by_slot)))
        named: dict[int, tuple[int, int]] = {}
        for owner, slots in table.of.items():
            named |= {slot: (owner, row) for row, slot in enumerate(slots)}
        assert used == named
        assert table.by_slot == [owner for owner, _ in used.values()]
    assert num_moved > 5


def test_an_owner_without_slots_frees_none() -> None:
    table = SlotTable[str]()
    assert table.free("a") == []
    assert (table.by_slot, table.of) == ([], {})
