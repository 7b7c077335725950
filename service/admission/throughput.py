"""How fast work is done, measured while there is work. It knows no requests."""

import math
import time
from collections.abc import Callable

_HORIZON_S = 10.0  # of work; what was done so long ago counts 1/e of what is done now


class DrainRate:
    """Work done in a second, in whatever unit it is counted: an exponentially weighted mean over busy time.

    When much is begun at one time, the first to end says little of the others: nothing is said before as many have
    ended as are at work.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._num_begun = 0
        self._since_s = 0.0
        self._busy_s = 0.0
        self._done = 0.0
        self._num_ended = 0
        self._is_measured = False

    def begin(self) -> None:
        """Note that a piece of work is begun."""
        if self._num_begun == 0:
            self._since_s = self._now()
        self._num_begun += 1

    def end(self, amount: float) -> None:
        """Note that a piece of work has ended, and how much of it was done."""
        self._num_begun -= 1
        self._num_ended += 1
        self._is_measured = self._is_measured or self._num_ended >= self._num_begun
        elapsed_s, self._since_s = self._now() - self._since_s, self._now()
        kept = math.exp(-elapsed_s / _HORIZON_S)
        self._busy_s, self._done = self._busy_s * kept + elapsed_s, self._done * kept + amount

    def seconds_for(self, amount: float) -> float:
        """Return how long `amount` will take; 0 before enough was measured."""
        return amount * self._busy_s / self._done if self._is_measured and self._done > 0 else 0.0
