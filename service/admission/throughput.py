"""The throughput of a model or of the whole service, measured while it is busy. It knows no requests."""

import math
import time
from collections.abc import Callable

_TIME_CONSTANT_S = 10.0  # of busy time: work done that long ago has weight 1/e
_FORGET_AFTER_S = 10.0  # of idle time: a slow past may have had causes that have passed


class ThroughputEstimate:
    """Work per second, in any unit: an exponentially weighted mean over busy time.

    The first item of a burst to finish is no estimate for the others: there is none before as many items have finished
    as are in flight.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._num_in_flight = 0
        self._updated_s = 0.0
        self._busy_s = 0.0
        self._done = 0.0
        self._num_finished = 0
        self._is_measured = False

    def begin(self) -> None:
        """Record the start of an item of work."""
        if self._num_in_flight == 0:
            if self._now() - self._updated_s > _FORGET_AFTER_S:
                self._busy_s, self._done, self._num_finished, self._is_measured = 0.0, 0.0, 0, False
            self._updated_s = self._now()
        self._num_in_flight += 1

    def end(self, amount: float) -> None:
        """Record the end of an item of work, and how much of it was done."""
        self._num_in_flight -= 1
        self._num_finished += 1
        self._is_measured = self._is_measured or self._num_finished >= self._num_in_flight
        elapsed_s, self._updated_s = self._now() - self._updated_s, self._now()
        decay = math.exp(-elapsed_s / _TIME_CONSTANT_S)
        self._busy_s, self._done = self._busy_s * decay + elapsed_s, self._done * decay + amount

    def seconds_for(self, amount: float) -> float:
        """Return the expected seconds for `amount`; 0 without an estimate."""
        return amount * self._busy_s / self._done if self._is_measured and self._done > 0 else 0.0
