"""Figures of models: metrics with bootstrap intervals, paired differences, evidence by betting.

Intervals: images are drawn with replacement. The draws give bias and standard error of a normal
interval (Davison and Hinkley, 1997, Bootstrap Methods and their Application, section 5.2.1):
percentiles would repeat the bias of mAP, and cover it in .75 of the cases. The same draw is used
for every model and metric: differences of two models are paired.

Betting: a bettor stakes a share of a wealth of 1 on every image and gains where a bounded value is
negative. While its mean is zero or more, the wealth ever reaches 1 / level with a probability of at
most `level` (Ville's inequality). The bet is the one that would have gained most on the images
before, and so adapts to mean and variance (GRAPA of Waudby-Smith and Ramdas, 2020, arXiv
2010.09686). The values need an upper bound only.

Shapes: I images, R rules (one null hypothesis each), B bets.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np

from diptych_client.tools.matching import Floats

NUM_RESAMPLES = 1000
_NUM_ERRORS = 2.0  # standard errors; Student's t with 60 images


# a metric as a function of how often each sample counts; NaN if nothing is left to measure
Estimator = Callable[[Floats], float]


def ratio(numerators: Floats, denominators: Floats) -> Estimator:
    """Return a sum over a sum, such as an error rate if the denominators are lengths."""

    def value(weights: Floats) -> float:
        total = float(weights @ denominators)
        return float(weights @ numerators) / total if total else math.nan

    return value


def mean(values: Sequence[float] | Floats) -> Estimator:
    return ratio(np.asarray(values, dtype=np.float64), np.ones(len(values)))


@dataclass(frozen=True, slots=True)
class Metric:
    """A named metric, printed in hundredths: 34.7 mAP is .347."""

    name: str
    value: Estimator
    is_error: bool = False  # lower is better


@dataclass(frozen=True, slots=True)
class Outcome:
    """The error of an answer, from 0 to 1, with its kinds of error."""

    error: float
    kinds: frozenset[str] = frozenset()
    true_kinds: Sequence[str] = ()  # of each true object
    answer_kinds: Sequence[str] = ()  # of each answered object


@dataclass(frozen=True, slots=True)
class Details:
    """Tables and curves of one model; values in hundredths like the metrics."""

    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    precisions: Sequence[float] = ()  # at IoU 0.5 and recalls 0, 0.01, …, 1
    calibration_error: float = math.nan  # too high with few objects, by an unknown amount


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval, in hundredths."""

    value: float
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value)

    def __str__(self) -> str:
        return f"{_rounded(self.value)} {self.ends()}" if self.is_finite else "–"

    def ends(self) -> str:
        return f"[{_rounded(self.low)}, {_rounded(self.high)}]"

    def negated(self) -> "Interval":
        return Interval(-self.value, -self.high, -self.low)


def _rounded(value: float) -> str:
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
        return self.interval.low > 0 or self.interval.high < 0

    def as_subtracted(self) -> Interval:
        return self.interval.negated() if self.is_error else self.interval

    def __str__(self) -> str:
        if not self.interval.is_finite:
            return f"nothing to measure for {self.first} and {self.second} by {self.metric}"
        is_second = self.interval.value > 0
        gain = self.interval if is_second else self.interval.negated()
        if self.is_clear:
            better = self.second if is_second else self.first
            return f"{better} is better by {_rounded(gain.value)} {self.metric} {gain.ends()}"
        models = f"{self.first} and {self.second} cannot be told apart"
        amount = f"{self.second} − {self.first} = {self.as_subtracted()} {self.metric}"
        return f"{models} with {self.num_images} images: {amount}"


@dataclass(frozen=True, slots=True)
class Estimates:
    """The metrics of all models, and the paired differences of each two."""

    intervals: Mapping[str, Mapping[str, Interval]]  # keyed by model, then metric
    differences: tuple[Difference, ...]


def estimates(
    metrics: Mapping[str, Sequence[Metric]], image_of_sample: Sequence[int], seed: int
) -> Estimates:
    images = np.asarray(image_of_sample, dtype=np.int64)
    num_images = int(images.max(initial=-1)) + 1
    rows: dict[str, list[list[float]]] = {model: [] for model in metrics}
    for counts in chain([np.ones(num_images)], resampled_counts(num_images, seed)):
        for model, model_metrics in metrics.items():
            rows[model].append([100 * metric.value(counts[images]) for metric in model_metrics])
    # (1 + resamples, metrics) of each model, the measured values first
    draws = {model: np.array(values) for model, values in rows.items()}
    intervals: dict[str, dict[str, Interval]] = {}
    for model, model_metrics in metrics.items():
        columns = zip(model_metrics, draws[model].T, strict=True)
        intervals[model] = {metric.name: _interval(column, 0.0) for metric, column in columns}
    differences = []
    num_sampled = len(np.unique(images))
    for index, metric in enumerate(next(iter(metrics.values()), ())):
        sign = -1 if metric.is_error else 1
        for first, second in combinations(metrics, 2):
            interval = _interval(sign * (draws[second][:, index] - draws[first][:, index]))
            differences.append(
                Difference(metric.name, first, second, interval, num_sampled, metric.is_error)
            )
    return Estimates(intervals, tuple(differences))


def resampled_counts(num_images: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for _ in range(NUM_RESAMPLES if num_images else 0):
        drawn = rng.integers(num_images, size=num_images)
        yield np.bincount(drawn, minlength=num_images).astype(np.float64)


def _interval(draws: Floats, lowest: float = -math.inf) -> Interval:
    """Return the first value with an interval, which ends at `lowest`, and at 100 if values do."""
    value = float(draws[0])
    defined = draws[np.isfinite(draws)]
    if not defined.size:
        return Interval(value, value, value)
    centre = 2 * value - float(defined[1:].mean())
    margin = _NUM_ERRORS * float(defined[1:].std())
    highest = max(100.0, float(defined.max()))
    return Interval(value, max(centre - margin, lowest), min(centre + margin, highest))


_CAUTION = 0.02  # largest losses before the first image: they keep the first bets small
_BETS = np.arange(20) / 20  # shares of the largest bet that cannot ruin the bettor


def log_wealth(values: Floats, highest: Floats) -> Floats:
    """Return the logarithm of the largest wealth after any image, (R,).

    `values` is (I, R), in an order that does not depend on them; `highest` (R,) is the largest
    possible value of each rule, known beforehand.
    """
    if (values > highest).any():
        raise ValueError("a value exceeds its bound")
    log_gains = np.log1p(-_BETS * (values / highest)[:, :, None])  # (I, R, B)
    log_growth = np.cumsum(log_gains, axis=0) + _CAUTION * np.log1p(-_BETS)
    best = np.vstack([np.zeros((1, len(highest)), int), log_growth.argmax(axis=2)])
    best = best[:-1]  # a bet knows earlier images alone
    log_wins = np.take_along_axis(log_gains, best[:, :, None], axis=2)[:, :, 0]
    wealth: Floats = np.cumsum(log_wins, axis=0).max(axis=0, initial=0.0)
    return wealth
