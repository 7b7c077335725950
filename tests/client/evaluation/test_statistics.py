"""Intervals, paired differences, and the wealth of a bettor."""

from itertools import product
from math import exp

import numpy as np
import pytest

from diptych_client.evaluation.statistics import (
    DIFFERENCE_BETS,
    SHARE_BETS,
    Difference,
    Estimates,
    Interval,
    Metric,
    estimates,
    log_wealth,
    mean,
    ratio,
)

RNG = np.random.default_rng(5)
SHARE = 0.05
HIGHEST = np.array([1 - SHARE])


def metric(values: list[float], is_error: bool = False) -> Metric:
    return Metric("mAP", mean(values), is_error)


def estimated(images: list[int] | None = None, **values: list[float]) -> Estimates:
    """Return the estimates of models, by default over an image for each value."""
    num_values = len(next(iter(values.values())))
    metrics = {name: [metric(own_values)] for name, own_values in values.items()}
    return estimates(metrics, images or list(range(num_values)), seed=0)


def normal(count: int) -> list[float]:
    return list(RNG.normal(0.5, 0.2, count))


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_interval_is_that_of_standard_error() -> None:
    values = normal(400)
    interval = estimated(A=values).intervals["A"]["mAP"]
    assert interval.value == pytest.approx(100 * np.mean(values))
    assert width(interval) == pytest.approx(200 * 1.96 * np.std(values) / 20, rel=0.1)
    total = estimates({"A": [Metric("n", np.sum)]}, [0, 1, 2], seed=0).intervals["A"]["n"]
    assert (total.low, total.value, total.high) == (300, 300, 300)  # as many images are drawn


def test_samples_of_one_image_are_drawn_together() -> None:
    values = list(np.repeat(normal(40), 10))
    by_image = estimated([index // 10 for index in range(400)], A=values).intervals["A"]["mAP"]
    alone = estimated(A=values).intervals["A"]["mAP"]
    assert width(by_image) > 2.5 * width(alone)  # sqrt(10) in the limit


def test_paired_gain_is_clear_despite_overlap() -> None:
    values = normal(180)
    both = estimated(A=values, B=[value + 0.031 for value in values])
    assert both.intervals["A"]["mAP"].high > both.intervals["B"]["mAP"].low
    (difference,) = both.differences
    assert str(difference) == "B is better by 3.1 mAP [3.1, 3.1]"
    (difference,) = estimated(A=normal(180), B=normal(180)).differences
    assert str(difference).startswith("A and B cannot be told apart with 180 images: ")


def test_unclear_difference_has_its_interval() -> None:
    difference = Difference("mAP", "A", "B", Interval(-22.6, -41.6, 0.0), num_images=20)
    expected = "A and B cannot be told apart with 20 images: B − A = −22.6 [−41.6, 0.0] mAP"
    assert str(difference) == expected
    nothing = Difference("mAP", "A", "B", Interval(float("nan"), 0, 0), num_images=20)
    assert str(nothing) == "nothing to measure for A and B by mAP"
    unmeasured = Metric("mAP", ratio(np.zeros(5), np.zeros(5)))
    assert str(estimates({"A": [unmeasured]}, range(5), seed=0).intervals["A"]["mAP"]) == "–"


def test_fewer_errors_are_better() -> None:
    values = normal(100)
    errors = {"A": [metric(values, True)], "B": [metric([value + 0.1 for value in values], True)]}
    (difference,) = estimates(errors, range(100), seed=0).differences
    assert str(difference) == "A is better by 10.0 mAP [10.0, 10.0]"
    assert str(difference.as_subtracted()) == "10.0 [10.0, 10.0]"


@pytest.mark.parametrize("bets", [SHARE_BETS, DIFFERENCE_BETS])
def test_wealth_is_fair_while_mean_is_zero(bets: object) -> None:
    is_wrong = np.array(list(product((0, 1), repeat=6))).T  # a column for each outcome
    values = (1 - SHARE) * is_wrong - SHARE * (1 - is_wrong)
    num_wrong = is_wrong.sum(axis=0)
    probability = SHARE**num_wrong * (1 - SHARE) ** (6 - num_wrong)
    highest = np.repeat(HIGHEST, values.shape[1])
    wealth = np.exp(log_wealth(values, highest, bets))  # type: ignore[arg-type]
    assert probability @ wealth == pytest.approx(1)
    assert wealth[num_wrong == 0] > 1


def test_largest_value_does_not_ruin_the_bettor() -> None:
    (logarithm,) = log_wealth(np.array([[1 - SHARE]]), HIGHEST)
    assert exp(logarithm) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="exceeds"):
        log_wealth(np.array([[2.0], [-1.0]]), np.array([1.5]))
