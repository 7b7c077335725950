import random

import pytest

from loadtest.soak import Allowance, trend_of

FDS = Allowance(0, 8)


def busy(floor: float, index: int) -> float:
    """Return a floor plus work in progress, which is sometimes none."""
    return floor + (0 if index % 7 == 0 else random.Random(index).uniform(0, 100))


def test_work_in_progress_is_not_growth() -> None:
    trend = trend_of([busy(50, index) for index in range(90)])
    assert (trend.first, trend.last) == (50, 50)
    assert FDS.covers(trend)


def test_a_leak_below_work_in_progress_is_found() -> None:
    assert not FDS.covers(trend_of([busy(50 + index * 0.2, index) for index in range(90)]))


def test_a_temporary_rise_is_flat_and_a_permanent_one_is_not() -> None:
    assert FDS.covers(trend_of([50.0] * 30 + [90.0] * 30 + [50.0] * 30))
    assert not FDS.covers(trend_of([50.0] * 60 + [90.0] * 30))


def test_an_allowance_is_a_share_or_a_minimum() -> None:
    grown = trend_of([100.0] * 45 + [104.0] * 45)
    assert Allowance(0.06, 0).covers(grown)
    assert not Allowance(0.01, 2).covers(grown)
    assert Allowance(0.01, 6).covers(grown)


def test_too_few_samples_have_no_trend() -> None:
    with pytest.raises(ValueError, match="at least 9 samples, not 8"):
        trend_of([1.0] * 8)
