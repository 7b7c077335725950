"""Intervals, paired differences, and the wealth of a bettor."""

from itertools import product

import numpy as np
import pytest

from diptych_client.tools.matching import Floats
from diptych_client.tools.statistics import (
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
    values = [1.0] * 39 + [0.0]
    assert estimated(A=values).intervals["A"]["mAP"].high == 100
    assert estimated(A=[1 - value for value in values]).intervals["A"]["mAP"].low == 0


def test_interval_is_without_bias() -> None:
    values = np.linspace(0, 1, 10)

    def variance(weights: Floats) -> float:
        return float(weights @ values**2 / 10 - (weights @ values / 10) ** 2)

    interval = estimates({"A": [Metric("v", variance)]}, range(10), seed=0).intervals["A"]["v"]
    bias = (interval.low + interval.high) / 2 - interval.value
    assert bias == pytest.approx(interval.value / 10, rel=0.3)


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


def test_differences_are_sentences() -> None:
    difference = Difference("mAP", "A", "B", Interval(-22.6, -41.6, 0.0), num_images=20)
    expected = "A and B cannot be told apart with 20 images: B − A = −22.6 [−41.6, 0.0] mAP"
    assert str(difference) == expected
    nothing = Difference("mAP", "A", "B", Interval(float("nan"), 0, 0), num_images=20)
    assert str(nothing) == "nothing to measure for A and B by mAP"
    unmeasured = Metric("mAP", ratio(np.zeros(5), np.zeros(5)))
    assert str(estimates({"A": [unmeasured]}, range(5), seed=0).intervals["A"]["mAP"]) == "–"
    values = normal(100)
    errors = {"A": [metric(values, True)], "B": [metric([value + 0.1 for value in values], True)]}
    (difference,) = estimates(errors, range(100), seed=0).differences
    assert str(difference) == "A is better by 10.0 mAP [10.0, 10.0]"
    assert str(difference.as_subtracted()) == "10.0 [10.0, 10.0]"


def test_wealth_rarely_grows_while_mean_is_zero() -> None:
    is_wrong = np.array(list(product((0, 1), repeat=12))).T  # a column for each outcome
    num_wrong = is_wrong.sum(axis=0)
    probability = 0.3**num_wrong * 0.7 ** (12 - num_wrong)
    wealth = np.exp(log_wealth(is_wrong - 0.3, np.full(is_wrong.shape[1], 0.7)))
    for level in (0.3, 0.5, 0.7):
        assert level / 10 < probability @ (wealth >= 1 / level) <= level
    assert wealth[-1] == 1  # all are wrong: the first wealth is the largest


def test_bets_grow_by_earlier_images_alone() -> None:
    values = np.array([[-0.05], [-0.05], [0.95], [-0.05]])
    (wealth,) = np.exp(log_wealth(values, np.ones(1)))
    gains = 0.05 * np.arange(20) / 20
    bets = np.log1p(gains) + 0.02 * np.log1p(-np.arange(20) / 20)
    assert wealth == pytest.approx(1 + gains[bets.argmax()])  # of the second image
    assert log_wealth(np.zeros((0, 1)), np.ones(1)) == [0]
    with pytest.raises(ValueError, match="exceeds"):
        log_wealth(np.array([[2.0], [-1.0]]), np.array([1.5]))
    values = np.full((200, 1), -1.0)
    wealths = [log_wealth(values[:count], np.ones(1))[0] for count in (1, 199, 200)]
    assert wealths[0] == 0
    assert wealths[2] - wealths[1] == pytest.approx(np.log(1.95))
