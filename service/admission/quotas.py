"""Those who ask, and what each may ask for: requests and pixels in a minute, and requests at one time.

It knows no key: `service.admission.api_keys` finds the caller that a key stands for.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.admission.rate_limits import Clock, TokenBucket
from service.errors import ImageTooLarge, Overloaded

_PIXELS_PER_MEGAPIXEL = 1_000_000


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What one caller may ask for; None is no limit."""

    requests_per_minute: int | None = None
    megapixels_per_minute: int | None = None  # of images, each counted once however many models see it
    max_concurrent: int | None = None


UNLIMITED = CallerLimits()


class Caller:
    """One who asks, with what is left of its limits."""

    def __init__(self, name: str, limits: CallerLimits, clock: Clock = time.monotonic) -> None:
        self.name = name
        self._max_concurrent = limits.max_concurrent
        self._num_concurrent = 0
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._megapixels = _bucket(limits.megapixels_per_minute, clock)

    def take_request(self) -> None:
        """Count a request; raise `Overloaded` if it is one too many."""
        if self._requests is not None and (wait_s := self._requests.take(1)):
            raise self._over(f"{self._requests.per_minute:g} requests a minute", wait_s)

    def take_pixels(self, num_pixels: int) -> None:
        """Count an image; raise `Overloaded`, or `ImageTooLarge` if a whole minute does not hold it."""
        if self._megapixels is None:
            return
        megapixels, allowed = num_pixels / _PIXELS_PER_MEGAPIXEL, self._megapixels.per_minute
        wait_s = self._megapixels.take(megapixels)
        if math.isinf(wait_s):
            message = f"the image has {megapixels:g} megapixels; the key {self.name!r} may send {allowed:g} a minute"
            raise ImageTooLarge(message, "image")
        if wait_s:
            raise self._over(f"{allowed:g} megapixels of images a minute", wait_s)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold one of the caller's places for requests at one time; raise `Overloaded` if none is free."""
        if self._max_concurrent is not None and self._num_concurrent >= self._max_concurrent:
            raise self._over(f"{self._max_concurrent} requests at one time", 1)
        self._num_concurrent += 1
        try:
            yield
        finally:
            self._num_concurrent -= 1

    def _over(self, limit: str, wait_s: float) -> Overloaded:
        return Overloaded(f"the key {self.name!r} may ask for {limit}, which is used up; try again later", wait_s)


def _bucket(per_minute: int | None, clock: Clock) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, clock)


ANYONE = Caller("anyone", UNLIMITED)  # where no key is asked for
