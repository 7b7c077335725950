"""Evidence that the mean of a bounded value over images is below zero, by betting on it.

A bettor stakes shares of a wealth of 1 on every image and gains where the value is negative. While
the mean is zero or more, no bet is expected to gain, so that the wealth reaches 1 / level with a
probability of at most `level`, whatever the distribution and however often one looks (Ville's
inequality). Source: Waudby-Smith and Ramdas, 2020, arXiv 2010.09686, sections 3 and 4.

The wealth is divided over fixed bets before the first image. It does not depend on the order of
the images, and the values need an upper bound only. Knows no labels, tasks or files.

Shapes: I images, R rules (one null hypothesis each), B bets.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bets:
    """Bets as shares of the largest one that cannot ruin the bettor, and the stake on each."""

    shares: Floats  # (B,)
    stakes: Floats  # (B,), of sum 1


# for a share: the best bet is 1 - (wrong labels) / (allowed ones); most is staked on no wrong one
SHARE_BETS = Bets(np.arange(1, 11) / 10, np.array([1.0] * 9 + [6.0]) / 15)
# for a difference: the best bet is near mean / variance
DIFFERENCE_BETS = Bets(np.array([0.5**n for n in range(8)]), np.full(8, 1 / 8))
_MAX_FACTOR = 1e6


def log_wealth(values: Floats, highest: Floats, bets: Bets = SHARE_BETS) -> Floats:
    """Return the logarithm of the wealth after all images, (R,).

    `values` is (I, R); `highest` (R,) is the largest possible value of each rule, known beforehand.
    """
    return _mixed(_log_gains(values, highest, bets), bets)


def num_images_needed(values: Floats, highest: float, level: float) -> int | None:
    """Return about how many images like these, (I,), bring the wealth to 1 / `level`.

    None if no number does.
    """
    gains = _log_gains(values[:, None], np.array([highest]), SHARE_BETS)
    target = -math.log(level)
    low = 0.0
    high = 1.0
    while _mixed(high * gains, SHARE_BETS)[0] < target:
        low = high
        high *= 2
        if high > _MAX_FACTOR:
            return None
    while (high - low) * len(values) > 1 / 2:
        middle = (low + high) / 2
        if _mixed(middle * gains, SHARE_BETS)[0] < target:
            low = middle
        else:
            high = middle
    return math.ceil(high * len(values))


def _log_gains(values: Floats, highest: Floats, bets: Bets) -> Floats:
    """Return the logarithm by which each bet multiplies its stake, (R, B)."""
    if (values > highest).any():
        raise ValueError("a value exceeds its bound")
    shares = values / highest  # (I, R), at most 1
    with np.errstate(divide="ignore"):  # the largest bet loses all on the largest value
        columns = [np.log1p(-bet * shares).sum(axis=0) for bet in bets.shares]
    return np.stack(columns, axis=1)


def _mixed(log_gains: Floats, bets: Bets) -> Floats:
    mixed: Floats = np.logaddexp.reduce(log_gains + np.log(bets.stakes), axis=1)
    return mixed
