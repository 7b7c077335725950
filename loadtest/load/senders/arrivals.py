"""When a client sends: at the times of a Poisson process, independent of the answers, or after its
last answer.

In the open loop nothing that the service does moves a due time: each is the previous one plus a
random gap. Many such clients, on one machine or on several, are together a Poisson process with the
sum of their rates.
"""

import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import gevent
from gevent.pool import Pool

RequestT = TypeVar("RequestT")


class PoissonClock:
    """The due times of one client, on the clock of time.monotonic()."""

    def __init__(self, rate_per_s: float, rng: random.Random, start_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._rng = rng
        self._due_s = start_s

    def next_due_s(self) -> float:
        """Return the next due time, which may have passed."""
        self._due_s += self._rng.expovariate(self._rate_per_s)
        return self._due_s


class RequestPool(Generic[RequestT]):
    """The requests in flight, at most `max_requests`; requests due beyond that are dropped."""

    def __init__(
        self,
        send: Callable[[RequestT, float], None],
        drop: Callable[[RequestT, float], None],
        max_requests: int,
    ) -> None:
        self._send = send
        self._drop = drop
        self._pool = Pool(max_requests)
        self._failed: list[gevent.Greenlet] = []

    @property
    def failure(self) -> BaseException | None:
        """The first error of the sender itself, in no sample."""
        return self._failed[0].exception if self._failed else None

    def start(self, request: RequestT, due_s: float) -> gevent.Greenlet | None:
        """Send in a new greenlet and return it, or return None if the pool is full."""
        if self._pool.full():
            self._drop(request, due_s)
            return None
        greenlet = self._pool.spawn(self._send, request, due_s)
        greenlet.link_exception(self._failed.append)
        return greenlet

    def finish(self, timeout_s: float) -> None:
        """Wait for the requests in flight, but no longer than `timeout_s`."""
        self._pool.join(timeout_s)


def send_when_due(
    clock: PoissonClock, prepare: Callable[[], RequestT], pool: RequestPool[RequestT]
) -> None:
    """Prepare a request, wait until it is due, and send it without waiting for the answer."""
    due_s = clock.next_due_s()
    request = prepare()
    gevent.sleep(max(0.0, due_s - time.monotonic()))
    pool.start(request, due_s)


def send_and_wait(prepare: Callable[[], RequestT], pool: RequestPool[RequestT]) -> None:
    """Send a request now and wait for its answer."""
    greenlet = pool.start(prepare(), time.monotonic())
    if greenlet is None:
        gevent.sleep(0.1)  # no busy loop while the pool is full
    else:
        greenlet.join()
