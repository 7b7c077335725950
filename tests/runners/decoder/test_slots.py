"""Slots after any order of admissions and frees, against a model of their content."""

from random import Random

import pytest

from runners.decoder.slots import SlotTable

NUM_SLOTS = 9


@pytest.mark.parametrize("seed", range(10))
def test_applied_moves_keep_every_row_in_the_slot_that_the_table_names(seed: int) -> None:
    random = Random(seed)
    table = SlotTable[int]()
    content: list[tuple[int, int] | None] = [None] * NUM_SLOTS  # owner and row
    num_moved = 0
    for owner in range(60):
        num_rows = random.choice([1, 1, 3, 4])
        if num_rows + table.num_used <= NUM_SLOTS:
            first = table.take(owner)
            others = table.take(owner, num_rows - 1)
            for row, slot in enumerate([*first, *others]):
                content[slot] = (owner, row)
        elif table.owners:
            gone = random.choice(table.owners)
            for freed in table.free(gone):
                owner_and_row = content[freed.last]
                content[freed.last] = None
                if freed.moved is not None:
                    assert owner_and_row is not None
                    assert owner_and_row[0] == freed.moved != gone
                    content[freed.slot] = owner_and_row
                    num_moved += 1
        used = {slot: row for slot, row in enumerate(content) if row is not None}
        assert list(used) == list(range(table.num_used))
        named: dict[int, tuple[int, int]] = {}
        for owner, slots in table.rows().items():
            named |= {slot: (owner, row) for row, slot in enumerate(slots)}
        assert used == named
        assert table.slot_owners() == [owner for owner, _ in used.values()]
    assert num_moved > 5


def test_values_are_in_the_slots_of_their_rows() -> None:
    table = SlotTable[str]()
    table.take("a")
    table.take("b", 2)
    table.take("c")
    table.free("a")
    assert table.by_slot(lambda owner: {"b": [10, 11], "c": [20]}[owner]) == [20, 10, 11]


def test_an_owner_without_slots_frees_none() -> None:
    table = SlotTable[str]()
    assert table.free("a") == []
    table.take("b")
    table.clear()
    assert (table.owners, table.num_used) == ([], 0)
