"""The search for the saturation point, on services with a known one."""

import random
from collections.abc import Callable

import pytest

from loadtest.load.traffic.saturation import (
    MAX_TRIES,
    NUM_REFINEMENTS,
    Saturation,
    Step,
    next_level,
    saturation_of,
)


def good_share(level: float, limit: float) -> float:
    """Return the share of good answers of a service that answers up to `limit` and refuses the
    rest.
    """
    return min(1.0, limit / level)


def found(
    share: Callable[[float], float], first: float = 4.0, max_steps: int = 30
) -> tuple[list[Step], Saturation]:
    steps: list[Step] = []
    while len(steps) < max_steps and (level := next_level(steps, first, 0.5)) is not None:
        steps.append(Step(level, 1000, round(1000 * share(level))))
    return steps, saturation_of(steps)


def levels_of(steps: list[Step]) -> list[float]:
    return [step.level for step in steps]


@pytest.mark.parametrize("limit", [3.0, 11.0, 37.0, 250.0])
def test_the_point_is_found_within_a_tenth(limit: float) -> None:
    steps, point = found(lambda level: good_share(level, limit))
    assert point.held is not None
    assert point.not_held is not None
    true_point = limit / 0.9
    assert point.held <= true_point < point.not_held
    # or one quantum apart
    assert point.not_held / point.held < 1.1 or point.not_held - point.held <= 0.5
    assert all(
        levels_of(steps).count(step.level) == (1 if step.holds else MAX_TRIES) for step in steps
    )


def test_levels_double_until_one_does_not_hold_twice() -> None:
    steps, _ = found(lambda level: good_share(level, 20))
    assert levels_of(steps)[:5] == [4, 8, 16, 32, 32]
    assert len(set(levels_of(steps))) == 4 + NUM_REFINEMENTS


def test_a_level_that_does_not_hold_is_tried_once_more() -> None:
    steps = [Step(4, 100, 100), Step(8, 100, 50)]
    assert next_level(steps, 4, 0.5) == 8
    assert next_level([*steps, Step(8, 100, 95)], 4, 0.5) == 16
    assert saturation_of([*steps, Step(8, 100, 95)]) == Saturation(8, None)


def test_a_first_level_that_does_not_hold_is_halved() -> None:
    steps, point = found(lambda level: good_share(level, 11), first=40)
    assert list(dict.fromkeys(levels_of(steps)))[:3] == [40, 20, 10]
    assert point.held == 10


def test_a_service_that_answers_nothing_has_no_point() -> None:
    steps, point = found(lambda _level: 0.0)
    assert point.held is None
    assert len(set(levels_of(steps))) == 1 + NUM_REFINEMENTS


def test_a_higher_level_that_holds_by_luck_does_not_count() -> None:
    steps = [Step(4, 100, 100), Step(8, 100, 50), Step(16, 100, 95)]
    assert saturation_of(steps) == Saturation(4, 8)


@pytest.mark.parametrize(
    ("num_due", "num_good", "holds"), [(10, 9, True), (10, 8, False), (11, 9, False), (1, 1, True)]
)
def test_nine_tenths_must_be_good(num_due: int, num_good: int, holds: bool) -> None:
    assert Step(1, num_due, num_good).holds is holds


def test_the_search_ends_despite_noise() -> None:
    rng = random.Random(0)
    for _ in range(200):
        steps, _ = found(lambda level: max(0.0, good_share(level, 30) + rng.gauss(0, 0.1)))
        assert len(steps) < 20


def test_the_search_ends_at_levels_one_quantum_apart() -> None:
    steps = [Step(1, 10, 10), *[Step(2, 10, 5)] * MAX_TRIES, *[Step(1.5, 10, 5)] * MAX_TRIES]
    assert next_level(steps, 1, 0.5) is None
