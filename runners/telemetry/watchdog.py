"""Detection of a stuck runner: its current iteration takes longer than allowed, so that it is not ready.

An iteration is one batch of the encoder, or one prefill and decode step of the decoder. A thread that is stuck in one
cannot be interrupted, only reported. Knows nothing of the work.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches one thread, each of whose iterations may take up to `limit_s`. `name` is for the log."""

    def __init__(self, name: str, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._limit_s = limit_s
        self._now = now
        self._started_s: float | None = None  # of the current iteration
        self._is_reported = False

    @contextmanager
    def iteration(self) -> Iterator[None]:
        """Time one iteration."""
        self._started_s = self._now()
        try:
            yield
        finally:
            self._started_s = None

    def is_in_time(self) -> bool:
        """Return False while an iteration exceeds the limit; log once that it does, and once that it has ended."""
        started_s = self._started_s  # read once: the watched thread may change it at any time
        elapsed_s = 0.0 if started_s is None else self._now() - started_s
        is_stuck = elapsed_s > self._limit_s
        if is_stuck and not self._is_reported:
            message = "%s is stuck: an iteration has taken %.0f s so far; at most %g s are allowed"
            logger.error(message, self._name, elapsed_s, self._limit_s)
        if self._is_reported and not is_stuck:
            logger.warning("%s is no longer stuck", self._name)
        self._is_reported = is_stuck
        return not is_stuck
