"""Detection and restart of a stuck runner: its current iteration takes longer than allowed.

An iteration is one batch of the encoder, or one prefill and decode step. A thread that is stuck in
one cannot be interrupted: the runner is reported and not ready, and after as long again its process
ends. The start has a separate limit.
"""

import faulthandler
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_MAX_INTERVAL_S = 1.0


class Watchdog:
    """Watches one thread, whose iterations may take up to `limit_s`; `name` is for the log."""

    def __init__(self, name: str, limit_s: float) -> None:
        self._name = name
        self._limit_s = limit_s
        # time.monotonic() at which the thread began its iteration; None between two
        self.started_s: float | None = None
        self._is_reported = False

    def is_in_time(self) -> bool:
        return self._elapsed_s() <= self._limit_s

    def report(self) -> None:
        """Log once that an iteration exceeds the limit."""
        elapsed_s = self._elapsed_s()
        is_stuck = elapsed_s > self._limit_s
        if is_stuck and not self._is_reported:
            message = "%s is stuck: an iteration has taken %.0f s so far; at most %g s are allowed"
            logger.error(message, self._name, elapsed_s, self._limit_s)
        self._is_reported = is_stuck

    def _elapsed_s(self) -> float:
        started_s = self.started_s  # read once: the watched thread may change it at any time
        return 0.0 if started_s is None else time.monotonic() - started_s


@contextmanager
def bounded_start(limit_s: float) -> Iterator[None]:
    """End the process, as `end_process_when_stuck` does, if the block exceeds `limit_s`."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_process_when_stuck(watchdogs: Sequence[Watchdog], limit_s: float) -> None:
    """Report late watchdogs in a thread, and end the process (status 1) once one is late for
    `limit_s`.

    The timer is one of C: it ends a process in which a thread holds the GIL, too, and writes all
    stacks to stderr. The gateway repeats the calls in flight.
    """
    interval_s = min(_MAX_INTERVAL_S, limit_s / 10)

    def watch() -> None:
        while True:
            for watchdog in watchdogs:
                watchdog.report()
            if all(watchdog.is_in_time() for watchdog in watchdogs):
                faulthandler.dump_traceback_later(limit_s, exit=True)
            time.sleep(interval_s)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
