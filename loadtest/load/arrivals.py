"""When a client sends: at the times of a Poisson process, whatever has been answered, or after its last answer.

In the open loop nothing that the service does moves a due time: each is the one before plus a random gap. Who is many
clients of this kind at once is a Poisson process too, with the sum of their rates, on one machine or on several.
"""

import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import gevent
from gevent.pool import Pool

RequestT = TypeVar("RequestT")


class PoissonClock:
    """The due times of one client; on the clock of time.monotonic()."""

    def __init__(self, rate_per_s: float, rng: random.Random, start_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._rng = rng
        self._due_s = start_s

    def next_due_s(self) -> float:
        """Return the next due time; it may have passed."""
        self._due_s += self._rng.expovariate(self._rate_per_s)
        return self._due_s


class Outstanding(Generic[RequestT]):
    """The requests that are under way, at most so many; what is due beyond that is not sent."""

    def __init__(
        self,
        send: Callable[[RequestT, float], None],
        drop: Callable[[RequestT, float], None],
        max_requests: int,
    ) -> None:
        self._send = send
        self._drop = drop
        self._pool = Pool(max_requests)
        self.failure: BaseException | None = None  # of the sender itself, which no sample tells of

    def start(self, request: RequestT, due_s: float) -> gevent.Greenlet | None:
        """Send in a greenlet of its own, and return it; None where there is no room."""
        if self._pool.full():
            self._drop(request, due_s)
            return None
        greenlet = self._pool.spawn(self._send, request, due_s)
        greenlet.link_exception(self._note_failure)
        return greenlet

    def finish(self, timeout_s: float) -> None:
        """Wait for what is under way, but no longer than that."""
        self._pool.join(timeout_s)

    def _note_failure(self, greenlet: gevent.Greenlet) -> None:
        self.failure = self.failure or greenlet.exception


def ask_when_due(clock: PoissonClock, prepare: Callable[[], RequestT], outstanding: Outstanding[RequestT]) -> None:
    """Prepare a request, wait until it is due, send it, and wait for no answer."""
    due_s, request = clock.next_due_s(), prepare()
    gevent.sleep(max(0.0, due_s - time.monotonic()))
    outstanding.start(request, due_s)


def ask_and_wait(prepare: Callable[[], RequestT], outstanding: Outstanding[RequestT]) -> None:
    """Send a request now and wait for its answer."""
    greenlet = outstanding.start(prepare(), time.monotonic())
    if greenlet is None:
        gevent.sleep(0.1)  # a client that cannot send does not spin
    else:
        greenlet.join()
