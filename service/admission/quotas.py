"""The quota of an API key: requests and megapixels per minute, and concurrent requests. It knows no keys.

Rates are token buckets with one rate (RFC 2697): a bucket is full at the start and holds one minute's refill.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import ImageTooLarge, Overloaded

Clock = Callable[[], float]  # seconds, such as time.monotonic

_PIXELS_PER_MEGAPIXEL = 1_000_000


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Limits of one API key; None is unlimited."""

    requests_per_minute: int | None = None
    megapixels_per_minute: int | None = None  # an image counts once, however many models it is sent to
    max_concurrent: int | None = None


NO_LIMITS = QuotaLimits()


class TokenBucket:
    """A bucket that refills at `per_minute` and holds at most that much."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._refilled_s = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it is available.

        They are infinite if `amount` exceeds a full bucket.
        """
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._refilled_s) * self.per_minute / 60)
        self._refilled_s = now_s
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) * 60 / self.per_minute if amount <= self.per_minute else math.inf


class Quota:
    """The limits of one API key and how much of them is used."""

    def __init__(self, name: str, limits: QuotaLimits, clock: Clock = time.monotonic) -> None:
        self.name = name
        self._max_concurrent = limits.max_concurrent
        self._num_concurrent = 0
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._megapixels = _bucket(limits.megapixels_per_minute, clock)

    def take_request(self) -> None:
        """Count one request; raise `Overloaded` if the rate is exceeded."""
        if self._requests is not None and (wait_s := self._requests.take(1)):
            raise self._exceeded(f"{self._requests.per_minute:g} requests per minute", wait_s)

    def take_pixels(self, num_pixels: int) -> None:
        """Count one image; raise `Overloaded`, or `ImageTooLarge` if it exceeds the quota of a whole minute."""
        if self._megapixels is None:
            return
        megapixels, allowed = num_pixels / _PIXELS_PER_MEGAPIXEL, self._megapixels.per_minute
        wait_s = self._megapixels.take(megapixels)
        if math.isinf(wait_s):
            message = f"the image has {megapixels:g} megapixels; the key {self.name!r} may send {allowed:g} per minute"
            raise ImageTooLarge(message, "image")
        if wait_s:
            raise self._exceeded(f"{allowed:g} megapixels per minute", wait_s)

    def begin_request(self) -> None:
        """Count a concurrent request until `end_request`; raise `Overloaded` above the limit."""
        if self._max_concurrent is not None and self._num_concurrent >= self._max_concurrent:
            raise self._exceeded(f"{self._max_concurrent} concurrent requests", 1)
        self._num_concurrent += 1

    def end_request(self) -> None:
        self._num_concurrent -= 1

    def _exceeded(self, limit: str, wait_s: float) -> Overloaded:
        return Overloaded(f"the key {self.name!r} has reached its limit of {limit}", wait_s)


def _bucket(per_minute: int | None, clock: Clock) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, clock)


UNLIMITED = Quota("anonymous", NO_LIMITS)  # of every request to a service without API keys
