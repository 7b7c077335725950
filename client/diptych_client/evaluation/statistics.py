"""Figures of models: metrics with bootstrap intervals, paired differences, evidence by betting.

Intervals: images are drawn with replacement (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13: percentile intervals); all samples of a drawn image count, and the same
draw is used for every model and metric, so that the difference of two models is paired.

Betting: a bettor stakes shares of a wealth of 1 on every image and gains where a bounded value is
negative. While its mean is zero or more, the wealth reaches 1 / level with a probability of at most
`level`, however often one looks (Ville's inequality; Waudby-Smith and Ramdas, 2020, arXiv
2010.09686, sections 3 and 4). The wealth is divided over fixed bets before the first image: the
order of the images has no effect, and the values need an upper bound only.

Shapes: I images, R rules (one null hypothesis each), B bets.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations

import numpy as np

from diptych_client.matching import Floats

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


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
        intervals[model] = {metric.name: _interval(column) for metric, column in columns}
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


def _interval(draws: Floats) -> Interval:
    value = float(draws[0])
    defined = draws[1:][np.isfinite(draws[1:])]
    quantiles = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(defined, quantiles) if defined.size else (value, value)
    return Interval(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets as shares of the largest one that cannot ruin the bettor, and the stake on each."""

    shares: Floats  # (B,)
    stakes: Floats  # (B,), of sum 1


# for a share: the best bet is 1 - (wrong labels) / (allowed ones); most is staked on no wrong one
SHARE_BETS = Bets(np.arange(1, 11) / 10, np.array([1.0] * 9 + [6.0]) / 15)
# for a difference: the best bet is near mean / variance
DIFFERENCE_BETS = Bets(np.array([0.5**n for n in range(8)]), np.full(8, 1 / 8))


def log_wealth(values: Floats, highest: Floats, bets: Bets = SHARE_BETS) -> Floats:
    """Return the logarithm of the wealth after all images, (R,).

    `values` is (I, R); `highest` (R,) is the largest possible value of each rule, known beforehand.
    """
    if (values > highest).any():
        raise ValueError("a value exceeds its bound")
    shares = values / highest  # (I, R), at most 1
    with np.errstate(divide="ignore"):  # the largest bet loses all on the largest value
        columns = [np.log1p(-bet * shares).sum(axis=0) for bet in bets.shares]
    log_gains = np.stack(columns, axis=1)  # (R, B)
    wealth: Floats = np.logaddexp.reduce(log_gains + np.log(bets.stakes), axis=1)
    return wealth
