"""The mutants of the rooms: their making, the committed results of `python -m
tests.support.mutation`.
"""

import ast
from pathlib import Path

import pytest

from tests.support.forked_tests import LARGE_PACKAGES
from tests.support.mutants import mutants_of
from tests.support.mutation import (
    MIN_KILLED,
    Room,
    add_result,
    paths_of_tests,
    read_results,
    rooms,
    sample,
)

SOURCE = '''"""A text stays: 1 < 2."""

async def admitted(self, queue: dict[str, 3], limit: int = 8) -> bool:
    if queue.size >= limit and not self.closed:
        raise Full(f"{limit + 1}")
    self.count += 1
    for one in queue:
        if one is None:
            break
    await queue.put(self, one, block=True)
    self.report(limit, limit)
    return True

if __name__ == "__main__":
    main(1, 2)
'''


def test_each_mutant_is_one_change_of_the_code_and_keeps_texts_and_annotations() -> None:
    found = mutants_of("a.py", SOURCE)
    assert [mutant.name.partition(": ")[2] for mutant in found] == [
        "`8` to `9`",
        (
            "`queue.size >= limit and not self.closed` to `(not (queue.size >= limit and not"
            " self.closed))`"
        ),
        (
            "`queue.size >= limit and not self.closed` to `((queue.size >= limit) or (not"
            " self.closed))`"
        ),
        "`queue.size >= limit` to `((queue.size) > (limit))`",
        "`not self.closed` to `(self.closed)`",
        '`raise Full(f"{limit + 1}")` to `pass`',
        "`self.count += 1` to `pass`",
        "`1` to `2`",
        "`one is None` to `((one) is not (None))`",
        "`break` to `continue`",
        "`await queue.put(self, one, block=True)` to `pass`",
        "`queue.put(self, one, block=True)` to `queue.put(one, self, block=True)`",
        "`True` to `False`",
        "`self.report(limit, limit)` to `pass`",
        "`return True` to `return None`",
        "`True` to `False` (2)",
    ]
    for mutant in found:
        changed = mutant.applied(SOURCE.encode())
        assert changed != SOURCE.encode()
        ast.parse(changed)
    assert {mutant.function for mutant in found} == {"admitted"}


def test_the_name_of_a_mutant_survives_changes_of_other_lines() -> None:
    moved = mutants_of("a.py", SOURCE.replace("async def", "x = 5\n\n\nasync def"))
    assert {mutant.name for mutant in mutants_of("a.py", SOURCE)} < {
        mutant.name for mutant in moved
    }


@pytest.mark.parametrize("room", rooms())
def test_every_room_has_mutants_and_tests(room: str) -> None:
    assert sample(rooms()[room]) == sample(rooms()[room])
    assert paths_of_tests(room)


@pytest.mark.parametrize("room", read_results())
def test_nine_tenths_of_the_mutants_are_killed_and_each_survivor_has_a_reason(room: str) -> None:
    result = read_results()[room]
    assert result.killed + len(result.alive) == result.mutants
    assert result.killed >= MIN_KILLED * result.mutants
    assert all(result.alive.values())


def test_a_reason_is_kept_as_long_as_its_mutant_lives(tmp_path: Path) -> None:
    file = tmp_path / "mutation.json"
    add_result("tasks", Room(3, 1, {"a": "equivalent", "b": "needs a GPU"}), file)
    add_result("offline", Room(2, 2, {}), file)
    add_result("tasks", Room(3, 1, {"b": "", "c": ""}), file)
    assert read_results(file) == {
        "offline": Room(2, 2, {}),
        "tasks": Room(3, 1, {"b": "needs a GPU", "c": ""}),
    }


def test_the_packages_that_forks_share_are_none_of_ours() -> None:
    assert not {name.partition(".")[0] for name in LARGE_PACKAGES} & {
        "service",
        "runners",
        "wire",
        "tasks",
        "tests",
        "export",
    }
