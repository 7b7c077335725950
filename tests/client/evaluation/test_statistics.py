"""Intervals and paired differences."""

import numpy as np
import pytest

from diptych_client.evaluation.statistics import (
    Difference,
    Interval,
    Metric,
    Ratio,
    estimates,
    resampled_counts,
)
from diptych_client.matching import Floats

RNG = np.random.default_rng(5)


def mean(name: str, values: list[float]) -> Metric:
    return Metric(name, Ratio(np.array(values), np.ones(len(values))))


def normal(mean_value: float, count: int) -> list[float]:
    return list(RNG.normal(mean_value, 0.2, count))


def test_a_resample_draws_as_many_images_as_there_are() -> None:
    draws = list(resampled_counts(50, 20, seed=1))
    assert {draw.sum() for draw in draws} == {50}
    assert len({tuple(draw) for draw in draws}) == 20
    assert all((a == b).all() for a, b in zip(draws, resampled_counts(50, 20, seed=1), strict=True))


class Total:
    """The number of samples that count."""

    def value(self, weights: Floats) -> float:
        return float(weights.sum())


def test_each_metric_has_as_many_images_in_a_resample_as_were_evaluated() -> None:
    found = estimates({"one": [Metric("total", Total())]}, [0, 1, 2], seed=0).intervals["one"][
        "total"
    ]
    assert (found.low, found.value, found.high) == (300, 300, 300)


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = normal(0.5, 400)
    found = estimates({"one": [mean("m", values)]}, range(400), seed=0).intervals["one"]["m"]
    expected = 100 * 1.96 * np.std(values) / 20
    assert found.value == pytest.approx(100 * np.mean(values))
    assert ((found.high - found.low) / 2) == pytest.approx(expected, rel=0.1)  # 1,000 resamples


def test_samples_of_one_image_are_drawn_together() -> None:
    values = [float(value) for value in normal(0.5, 40) for _ in range(10)]
    images = [index // 10 for index in range(400)]
    by_image = estimates({"one": [mean("m", values)]}, images, seed=0).intervals["one"]["m"]
    alone = estimates({"one": [mean("m", values)]}, range(400), seed=0).intervals["one"]["m"]
    assert ((by_image.high - by_image.low) / 2) > 2.5 * (
        (alone.high - alone.low) / 2
    )  # sqrt(10) in the limit


def test_a_small_gain_on_every_image_is_clear_although_the_intervals_overlap() -> None:
    values = normal(0.5, 180)
    both = {"A": [mean("mAP", values)], "B": [mean("mAP", [value + 0.031 for value in values])]}
    found = estimates(both, range(180), seed=0)
    assert found.intervals["A"]["mAP"].high > found.intervals["B"]["mAP"].low
    (difference,) = found.differences
    assert str(difference) == "B is better by 3.1 mAP [3.1, 3.1]"


def test_equal_models_cannot_be_told_apart() -> None:
    both = {"A": [mean("mAP", normal(0.5, 180))], "B": [mean("mAP", normal(0.5, 180))]}
    (difference,) = estimates(both, range(180), seed=0).differences
    assert str(difference).startswith("A and B cannot be told apart with 180 images: ")


def test_an_unclear_difference_has_its_sign_and_its_interval() -> None:
    interval = Interval(-22.6, -41.6, 0.0)
    difference = Difference("mAP", "A", "B", interval, num_images=20)
    expected = "A and B cannot be told apart with 20 images: B − A = −22.6 [−41.6, 0.0] mAP"
    assert str(difference) == expected
    assert difference.num_images_needed == 17
    nothing = Difference("mAP", "A", "B", Interval(float("nan"), 0, 0), num_images=20)
    assert str(nothing) == "nothing to measure for A and B by mAP"


def test_a_metric_without_anything_to_measure_has_no_interval() -> None:
    nothing = Metric("mAP", Ratio(np.zeros(5), np.zeros(5)))
    assert str(estimates({"A": [nothing]}, range(5), seed=0).intervals["A"]["mAP"]) == "–"


def test_fewer_errors_are_better() -> None:
    values = np.array(normal(0.5, 100))
    errors = {
        name: [Metric("CER", Ratio(values + gain, np.ones(100)), is_error=True)]
        for name, gain in (("A", 0), ("B", 0.1))
    }
    (difference,) = estimates(errors, range(100), seed=0).differences
    assert str(difference) == "A is better by 10.0 CER [10.0, 10.0]"
    assert str(difference.as_subtracted()) == "10.0 [10.0, 10.0]"
