"""Whether what was measured over time stays flat, by its floor: what is at work lifts samples, a leak the lowest.

The samples are cut into blocks, of each the lowest counts: their line of least squares must not rise, nor the lowest of
the last third lie above that of the first.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_NUM_BLOCKS = 9


@dataclass(frozen=True, slots=True)
class Trend:
    """Of one measure, sampled at equal distances after warm-up."""

    first: float  # lowest of the first third
    last: float  # lowest of the last third
    growth: float  # of the floor from the first block to the last, by least squares


@dataclass(frozen=True, slots=True)
class Allowance:
    """What counts as flat: a gain of `share` of the first third, or of `least`, whichever is more."""

    share: float
    least: float

    def covers(self, trend: Trend) -> bool:
        """Say whether a trend is flat."""
        allowed = max(self.share * trend.first, self.least)
        return trend.last - trend.first <= allowed and trend.growth <= allowed


def trend_of(values: Sequence[float]) -> Trend:
    """Return the trend; raise `ValueError` for fewer values than blocks."""
    if len(values) < _NUM_BLOCKS:
        raise ValueError(f"{len(values)} samples say nothing about a trend; {_NUM_BLOCKS} are needed")
    size = len(values) // _NUM_BLOCKS
    floors = [min(values[-(block + 1) * size :][:size]) for block in reversed(range(_NUM_BLOCKS))]
    third = _NUM_BLOCKS // 3
    growth = statistics.linear_regression(range(_NUM_BLOCKS), floors).slope * (_NUM_BLOCKS - 1)
    return Trend(min(floors[:third]), min(floors[-third:]), growth)
