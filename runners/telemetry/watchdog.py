"""Says whether the present turn of a runner takes longer than any should: then the runner is not ready.

A turn is one batch of an encoder, or one prefill and step of a decoder. Nothing can stop a thread that is stuck in one.
It knows no work.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches one thread whose turns may each take `limit_s`."""

    def __init__(self, name: str, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._limit_s = limit_s
        self._now = now
        self._since_s: float | None = None  # of the present turn
        self._is_told = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Watch what is done meanwhile."""
        self._since_s = self._now()
        try:
            yield
        finally:
            self._since_s = None

    def is_content(self) -> bool:
        """Say whether no turn takes too long; log, once for each, that one does, and that it has ended."""
        since_s = self._since_s  # the thread may set it at any time
        taken_s = 0.0 if since_s is None else self._now() - since_s
        is_stuck = taken_s > self._limit_s
        if is_stuck and not self._is_told:
            logger.error(
                "%s is stuck: a turn takes %.0f s so far, at most %g are allowed", self._name, taken_s, self._limit_s
            )
        if self._is_told and not is_stuck:
            logger.warning("%s is no longer stuck", self._name)
        self._is_told = is_stuck
        return not is_stuck
