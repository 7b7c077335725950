"""Draws of labelled images from a population of answers, and how often a choice breaks its promise.

The population is finite and known: the share of wrong labels that a rule accepts in it is exact.
Images are drawn with replacement. Knows no models and no files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diptych_client.annotate.guarantee import (
    Flags,
    Indices,
    Promise,
    Proved,
    Rule,
    Scored,
    accepted,
    candidates,
    decide,
)
from diptych_client.annotate.judging import Judged

Choose = Callable[[Scored, Flags, Scored], Rule | None]  # labels, which are right, unlabelled ones

_UNLIMITED = 1 << 30
_NAIVE_SCORE = 0.95


class Population:
    """The labels of images and which are right, flat."""

    def __init__(self, images: Sequence[Judged]) -> None:
        self.sizes = np.array([len(each.confidences) for each in images])
        self.labels = Scored.of([each.confidences for each in images])
        self.is_right = np.concatenate([each.is_right for each in images]).astype(bool)
        self.num_objects = sum(len(each.found_scores) for each in images)  # 0 for texts
        self._starts = np.cumsum(self.sizes) - self.sizes

    def draw(self, rng: np.random.Generator, num_images: int) -> tuple[Scored, Flags]:
        """Return the labels of so many images, and which are right."""
        drawn = rng.integers(len(self.sizes), size=num_images)
        sizes = self.sizes[drawn]
        images = np.repeat(np.arange(num_images), sizes)
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        places: Indices = np.repeat(self._starts[drawn], sizes) + np.arange(sizes.sum()) - first
        return Scored(num_images, images, self.labels.scores[places]), self.is_right[places]

    @property
    def share_found(self) -> float:
        """The right labels as a share of the true objects."""
        return int(self.is_right.sum()) / self.num_objects

    def share_and_coverage(self, rule: Rule) -> tuple[float, float]:
        """Return the share of wrong labels among the accepted, and the share of accepted ones."""
        found = accepted(self.labels, self.is_right, rule)
        return found.share, float(found.wholes.sum()) / len(self.is_right)

    def best_coverage(self, max_share: float) -> float:
        """Return the coverage of the best threshold, which only the population knows."""
        best = 0.0
        for score in np.unique(self.labels.scores).tolist():
            share, coverage = self.share_and_coverage(Rule(score, _UNLIMITED))
            if share <= max_share:
                best = max(best, coverage)
        return best


@dataclass(frozen=True, slots=True)
class Outcome:
    """How often a choice broke the promise, in the population and in drawn test images."""

    num_draws: int
    num_chosen: int
    num_broken: int
    num_broken_in_test: int
    coverage: float  # mean over all draws; nothing chosen covers 0

    def broken_interval(self) -> tuple[float, float]:
        """Return the share of broken draws with 95 % confidence (Wilson's score interval)."""
        z = 1.96
        share = self.num_broken / self.num_draws
        scale = 1 + z * z / self.num_draws
        middle = (share + z * z / (2 * self.num_draws)) / scale
        variance = share * (1 - share) / self.num_draws + (z / (2 * self.num_draws)) ** 2
        half = z * math.sqrt(variance) / scale
        return max(middle - half, 0.0), middle + half


@dataclass(frozen=True, slots=True)
class Draws:
    """Numbers of draws, and of the images of each."""

    num_draws: int = 1000
    num_labelled: int = 200
    num_unlabelled: int = 200
    num_test: int = 1000
    seed: int = 0


def simulate(
    population: Population, choices: Mapping[str, Choose], max_share: float, draws: Draws
) -> dict[str, Outcome]:
    """Return the outcome of every choice over the same draws."""
    chosen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in choices}
    for number in range(draws.num_draws):
        rng = np.random.default_rng((draws.seed, number))
        labels, is_right = population.draw(rng, draws.num_labelled)
        unlabelled, _ = population.draw(rng, draws.num_unlabelled)
        test_labels, test_is_right = population.draw(rng, draws.num_test)
        for name, choose in choices.items():
            rule = choose(labels, is_right, unlabelled)
            if rule is not None:
                share, coverage = population.share_and_coverage(rule)
                test = accepted(test_labels, test_is_right, rule)
                chosen[name].append((share, test.share, coverage))
    outcomes = {}
    for name, rows in chosen.items():
        shares, test_shares, coverages = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        outcomes[name] = Outcome(
            draws.num_draws,
            len(rows),
            int((shares > max_share).sum()),
            int((test_shares > max_share).sum()),
            float(coverages.sum()) / draws.num_draws,
        )
    return outcomes


def choices(promise: Promise) -> dict[str, Choose]:
    """Return the proved choice and two naive ones."""

    def proved(labels: Scored, is_right: Flags, unlabelled: Scored) -> Rule | None:
        found = decide(labels, is_right, candidates(unlabelled), promise)
        return found.rule if isinstance(found, Proved) else None

    def best_seen(labels: Scored, is_right: Flags, _unlabelled: Scored) -> Rule | None:
        for score in np.unique(labels.scores).tolist():
            if (~is_right[labels.scores >= score]).mean() <= promise.max_share:
                return Rule(score, _UNLIMITED)
        return None

    def high_score(_labels: Scored, _is_right: Flags, _unlabelled: Scored) -> Rule:
        return Rule(_NAIVE_SCORE, _UNLIMITED)

    return {"proved": proved, "precision seen": best_seen, f"score ≥ {_NAIVE_SCORE}": high_score}
