"""Rules that accept labels so that at most a given share of the accepted ones is wrong.

A rule accepts labels from a confidence on; an image with more than `max_labels` such labels is
reviewed as a whole. The share is a ratio of sums over images, and the labels of one image depend on
each other. With W wrong ones among the A accepted labels of an image, the share is below s if the
mean of W - s A over images is below 0, which evaluation/betting.py tests by image.

Answers to other images fix the rules before a true label is read. Each rule is tested once, in the
order of coverage, with several starts (Angelopoulos et al., 2021, Learn then Test, arXiv
2110.01052, section 4.2). A start has a part of the error level. A proved rule passes its level on
to the next one, another one loses it (the fallback procedure: Wiens, 2003, Pharmaceutical
Statistics 2). Knows no files and no requests.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from diptych_client.evaluation.betting import log_wealth, num_images_needed
from diptych_client.evaluation.statistics import Floats

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

_COVERAGES = np.arange(1, 21) / 20
_STARTS = {0.4: 0.2, 0.8: 0.3, 1.0: 0.5}  # parts of the error level, by coverage
_COMMON_COUNT = 0.99  # share of images with at most `max_labels`
_OPTIMISTIC_COUNTS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Promise:
    """At most this share, with this confidence."""

    max_share: float
    confidence: float

    @property
    def level(self) -> float:
        """Return the probability with which the promise may be broken."""
        return 1 - self.confidence


@dataclass(frozen=True, slots=True)
class Scored:
    """Labels or objects of several images, flat: the index of each one's image, and its score."""

    num_images: int
    images: Indices
    scores: Floats

    @classmethod
    def of(cls, scores_by_image: Sequence[Sequence[float]]) -> Self:
        sizes = [len(scores) for scores in scores_by_image]
        flat = list(chain.from_iterable(scores_by_image))
        images = np.repeat(np.arange(len(sizes)), sizes)
        return cls(len(sizes), images, np.array(flat, dtype=np.float64))

    def counts(self, chosen: Flags) -> Floats:
        """Return the number of chosen ones of each image."""
        found = np.bincount(self.images[chosen], minlength=self.num_images)
        return found.astype(np.float64)


@dataclass(frozen=True, slots=True)
class Rule:
    """Labels from `min_confidence` on are accepted, of images with at most `max_labels` of them."""

    min_confidence: float
    max_labels: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule to be tested, and the part of the error level that starts with it."""

    rule: Rule
    start: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts and wholes of each image: wrong among accepted labels, or missed among true objects."""

    parts: Floats
    wholes: Floats
    max_whole: int

    def excess(self, max_share: float) -> Floats:
        """Return W - s A of each image; its mean is negative if the share is below s."""
        return (1 - max_share) * self.parts - max_share * (self.wholes - self.parts)

    def highest(self, max_share: float) -> float:
        """Return the largest possible excess of an image."""
        return (1 - max_share) * self.max_whole

    @property
    def share(self) -> float:
        return float(self.parts.sum() / max(self.wholes.sum(), 1))


@dataclass(frozen=True, slots=True)
class Proved:
    """The proved rule of the largest coverage, with its figures on the labelled images."""

    promise: Promise
    rule: Rule
    share: float
    coverage: float
    num_images: int


@dataclass(frozen=True, slots=True)
class Unproved:
    """No rule is proved; `share` is that of all labels. None are needed: no number is enough."""

    promise: Promise
    share: float
    num_images: int
    num_needed: int | None


def candidates(pilot: Scored) -> tuple[Candidate, ...]:
    """Return rules of growing coverage by the answers to images that are not labelled."""
    descending = -np.sort(-pilot.scores) if len(pilot.scores) else np.zeros(1)
    starts: dict[float, float] = {}
    for coverage in _COVERAGES.tolist():
        confidence = float(descending[math.ceil(coverage * len(descending)) - 1])
        starts[confidence] = starts.get(confidence, 0.0) + _STARTS.get(coverage, 0.0)
    found = []
    for confidence, start in starts.items():
        max_labels = common_count(pilot.counts(pilot.scores >= confidence))
        found.append(Candidate(Rule(confidence, max_labels), start))
    return tuple(found)


def common_count(counts: Floats) -> int:
    """Return a number of labels that few images exceed."""
    if not len(counts):
        return 1
    return max(int(np.quantile(counts, _COMMON_COUNT, method="higher")), 1)


def accepted(labels: Scored, is_right: Flags, rule: Rule) -> Shares:
    """Return the wrong and the accepted labels of each image under a rule."""
    chosen = labels.scores >= rule.min_confidence
    wholes = labels.counts(chosen)
    is_kept = wholes <= rule.max_labels
    wrong = labels.counts(chosen & ~is_right)
    return Shares(wrong * is_kept, wholes * is_kept, rule.max_labels)


def decide(
    labels: Scored, is_right: Flags, tested: Sequence[Candidate], promise: Promise
) -> Proved | Unproved:
    """Return the rule with the largest coverage among those that are proved to keep the promise."""
    shares = [accepted(labels, is_right, each.rule) for each in tested]
    starts = [each.start for each in tested]
    proved = _proved(shares, starts, promise)
    if proved:
        best = proved[-1]
        coverage = float(shares[best].wholes.sum()) / len(labels.scores)
        return Proved(promise, tested[best].rule, shares[best].share, coverage, labels.num_images)
    needed = []
    for own, start in zip(shares, starts, strict=True):
        if start:
            needed.append(_num_needed(own, promise.max_share, start * promise.level))
    return Unproved(promise, shares[-1].share, labels.num_images, _least(needed))


def decide_review(
    objects: Scored, max_objects: int, scores: Sequence[float], promise: Promise
) -> Proved | Unproved:
    """Return the shortest review list that is proved to miss at most the promised share of objects.

    Each object has the best score of a box of it, -inf without one. The list holds boxes from a
    score on; the ascending `scores` are tested in their order, until one is not proved. Images
    with more than `max_objects` are not part of the promise.
    """
    wholes = objects.counts(np.ones(len(objects.scores), dtype=bool))
    is_kept = wholes <= max_objects
    shares = []
    for score in scores:
        missed = objects.counts(objects.scores < score)
        shares.append(Shares(missed * is_kept, wholes * is_kept, max_objects))
    proved = _proved(shares, [1.0] + [0.0] * (len(shares) - 1), promise)
    if not proved:
        needed = _num_needed(shares[0], promise.max_share, promise.level)
        return Unproved(promise, shares[0].share, objects.num_images, needed)
    best = proved[-1]
    share = shares[best].share
    return Proved(promise, Rule(scores[best], max_objects), share, 1 - share, objects.num_images)


def num_needed_at_best(counts: Floats, promise: Promise) -> int | None:
    """Return how many such images it takes if every true object is found and no label is wrong."""
    needed = []
    common = np.quantile(counts[counts > 0], _OPTIMISTIC_COUNTS, method="higher")
    for max_count in np.unique(common).tolist():
        wholes = counts * (counts <= max_count)
        shares = Shares(np.zeros_like(wholes), wholes, int(max_count))
        needed.append(_num_needed(shares, promise.max_share, promise.level))
    return _least(needed)


def _proved(shares: Sequence[Shares], starts: Sequence[float], promise: Promise) -> list[int]:
    """Return which hypotheses "the share is exceeded" are rejected, by the fallback procedure."""
    values = np.stack([each.excess(promise.max_share) for each in shares], axis=1)
    highest = np.array([each.highest(promise.max_share) for each in shares])
    log_wealths = log_wealth(values, highest).tolist()
    level = 0.0
    proved = []
    for index, start in enumerate(starts):
        level += start * promise.level
        if level and log_wealths[index] >= -math.log(level):
            proved.append(index)
        else:
            level = 0.0
    return proved


def _num_needed(shares: Shares, max_share: float, level: float) -> int | None:
    return num_images_needed(shares.excess(max_share), shares.highest(max_share), level)


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((each for each in numbers if each is not None), default=None)
