"""The simulation of images unlike the labelled ones, over handmade numbers."""

import numpy as np

from diptych_client.annotate.appearance import Seen
from laboratory.evaluation.shifts import Draws, simulate

DRAWS = Draws(num_runs=3, num_labelled=40, num_others=32)


def scenes(shift: float) -> list[Seen]:
    rows = np.random.default_rng(0).normal(shift, size=(80, 2)).tolist()
    named = enumerate(rows)
    return [Seen(f"images/{index}.png", 384.0, {"answers": tuple(row)}) for index, row in named]


def test_a_shift_of_a_quarter_is_found_in_its_folder_and_none_without_one() -> None:
    plain = scenes(0.0)
    assert simulate(plain, plain, 0, DRAWS) == [None] * 3
    for shift in simulate(plain, scenes(6.0), 8, DRAWS):
        assert shift is not None
        assert [part.name for part in shift.parts] == ["folder shifted"]
