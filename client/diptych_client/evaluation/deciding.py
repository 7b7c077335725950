"""A decision which of two models is better, as soon as enough images tell.

Each image has the error of both models, from 0 to 1. The mean of their difference is tested by
betting (betting.py), which may be looked at after every image: a wrong decision has a probability
of at most 1 - CONFIDENCE over all looks together. Equal means that the mean error differs by less
than a given margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych_client.evaluation.betting import DIFFERENCE_BETS, log_wealth
from diptych_client.evaluation.statistics import CONFIDENCE

Verdict = Literal["first", "second", "equal"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The better model, or that both are equal within the margin."""

    verdict: Verdict
    num_images: int
    difference: float  # mean error of the first minus that of the second

    def sentence(self, models: Sequence[str], num_all: int) -> str:
        """Return the decision in words."""
        first, second = models
        better = {"first": first, "second": second}.get(self.verdict)
        found = f"{better} is better" if better else f"{first} and {second} are equal"
        return (
            f"{found}: decided after {self.num_images} of {num_all} images, with"
            f" {CONFIDENCE:.0%} confidence; the mean errors differ by"
            f" {100 * abs(self.difference):.1f} hundredths"
        )


def decide(errors: Sequence[tuple[float, float]], margin: float | None) -> Decision | None:
    """Return what the errors of both models on random images tell; None while they do not."""
    if not errors:
        return None
    differences = np.array([first - second for first, second in errors], dtype=np.float64)
    mean = float(differences.mean())
    log_needed = -math.log((1 - CONFIDENCE) / 2)  # two ways to be wrong
    values = np.stack([-differences, differences], axis=1)
    second_wins, first_wins = log_wealth(values, np.ones(2), DIFFERENCE_BETS) >= log_needed
    if second_wins or first_wins:
        return Decision("second" if second_wins else "first", len(errors), mean)
    if margin is not None:
        within = log_wealth(values - margin, np.full(2, 1 - margin), DIFFERENCE_BETS)
        if (within >= log_needed).all():
            return Decision("equal", len(errors), mean)
    return None
