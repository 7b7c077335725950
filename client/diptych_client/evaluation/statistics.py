"""Bootstrap intervals of metrics, and the paired difference of two models.

Images are drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 6 and 13: percentile intervals); all samples of a drawn image count, and the same draw is
used for every model and metric, so that the difference of two models is paired.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


class Estimator(Protocol):
    """A metric as a function of how often each sample counts."""

    def value(self, weights: Floats) -> float:
        """Return the metric; NaN if nothing is left to measure."""
        ...


@dataclass(frozen=True, slots=True)
class Ratio:
    """A sum over a sum: a mean if the denominators are ones, an error rate if they are lengths."""

    numerators: Floats
    denominators: Floats

    def value(self, weights: Floats) -> float:
        total = float(weights @ self.denominators)
        return float(weights @ self.numerators) / total if total else float("nan")


@dataclass(frozen=True, slots=True)
class Metric:
    """A named metric, shown in hundredths: 34.7 mAP is .347."""

    name: str
    estimator: Estimator
    is_error: bool = False  # lower is better


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval, in hundredths."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "–"
        return f"{_shown(self.value)} {self.ends()}"

    def ends(self) -> str:
        return f"[{_shown(self.low)}, {_shown(self.high)}]"

    def negated(self) -> "Interval":
        return Interval(-self.value, -self.high, -self.low)


def _shown(value: float) -> str:
    """Return a number with a minus sign as wide as a digit; never -0.0."""
    text = f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second model is than the first by one metric, paired by image."""

    metric: str
    first: str
    second: str
    interval: Interval  # positive: the second is better
    num_images: int
    is_error: bool = False  # a lower metric is better

    @property
    def is_clear(self) -> bool:
        """Return True if the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def num_images_needed(self) -> int | None:
        """Return how many such images would make this difference clear, or None if it is 0."""
        value = self.interval.value
        if not math.isfinite(value) or not value:
            return None
        return math.ceil(self.num_images * (self.interval.half_width / value) ** 2)

    def as_subtracted(self) -> Interval:
        """Return the metric of the second minus that of the first."""
        return self.interval.negated() if self.is_error else self.interval

    def __str__(self) -> str:
        if not math.isfinite(self.interval.value):
            return f"nothing to measure for {self.first} and {self.second} by {self.metric}"
        is_second = self.interval.value > 0
        gain = self.interval if is_second else self.interval.negated()
        if self.is_clear:
            better = self.second if is_second else self.first
            return f"{better} is better by {_shown(gain.value)} {self.metric} {gain.ends()}"
        models = f"{self.first} and {self.second} cannot be told apart"
        amount = f"{self.second} − {self.first} = {self.as_subtracted()} {self.metric}"
        return f"{models} with {self.num_images} images: {amount}"


@dataclass(frozen=True, slots=True)
class Estimates:
    """The metrics of all models, and the paired differences of each two."""

    intervals: Mapping[str, Mapping[str, Interval]]  # keyed by model, then metric
    differences: tuple[Difference, ...]


def estimates(
    metrics: Mapping[str, Sequence[Metric]],
    image_of_sample: Sequence[int],
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimates:
    """Return the values of all metrics with their intervals."""
    images = np.asarray(image_of_sample, dtype=np.int64)
    num_images = int(images.max()) + 1 if len(images) else 0
    values = {model: _values(own, np.ones(len(images))) for model, own in metrics.items()}
    draws: dict[str, list[list[float]]] = {model: [] for model in metrics}
    for counts in resampled_counts(num_images, num_resamples, seed):
        for model, own in metrics.items():
            draws[model].append(_values(own, counts[images]))
    arrays = {model: np.array(rows) for model, rows in draws.items()}  # (resamples, metrics)
    intervals: dict[str, dict[str, Interval]] = {model: {} for model in metrics}
    for model, own in metrics.items():
        for i, each in enumerate(own):
            intervals[model][each.name] = _interval(values[model][i], arrays[model][:, i])
    differences = []
    for i, metric in enumerate(next(iter(metrics.values()), ())):
        sign = -1 if metric.is_error else 1
        for first, second in combinations(metrics, 2):
            gain = sign * (values[second][i] - values[first][i])
            gains = sign * (arrays[second][:, i] - arrays[first][:, i])
            interval = _interval(gain, gains)
            num_drawn = len(set(image_of_sample))
            found = Difference(metric.name, first, second, interval, num_drawn, metric.is_error)
            differences.append(found)
    return Estimates(intervals, tuple(differences))


def resampled_counts(num_images: int, num_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each image is drawn in each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(num_resamples if num_images else 0):
        drawn = rng.integers(num_images, size=num_images)
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)


def _values(metrics: Sequence[Metric], weights: Floats) -> list[float]:
    return [100 * each.estimator.value(weights) for each in metrics]


def _interval(value: float, draws: Floats) -> Interval:
    defined = draws[np.isfinite(draws)]
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(defined, quantiles) if defined.size else (value, value)
    return Interval(value, float(low), float(high))
