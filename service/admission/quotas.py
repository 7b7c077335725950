"""The quota of an API key: requests and megapixels per minute, and concurrent requests.

It knows no keys.

Rates are token buckets with one rate (RFC 2697): a bucket is full at the start and holds one
minute's refill.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import ImageTooLarge, InvalidRequest, Overloaded

if TYPE_CHECKING:  # it imports the store's client, which only DIPTYCH_SHARED_LIMITS_URL needs
    from service.admission.shared_limits import SharedQuota

Clock = Callable[[], float]  # seconds, such as time.monotonic

_PIXELS_PER_MEGAPIXEL = 1_000_000
_LEASE_MARGIN_S = 2.0  # a request ends shortly after its deadline


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Limits of one API key; unlimited by default."""

    requests_per_minute: int | None = None
    # an image counts once, however many models it is sent to
    megapixels_per_minute: int | None = None
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
        """Take `amount` and return 0, or return the seconds until it is available."""
        now_s = self._clock()
        self._level = min(
            self.per_minute, self._level + (now_s - self._refilled_s) * self.per_minute / 60
        )
        self._refilled_s = now_s
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) * 60 / self.per_minute


class Quota:
    """The limits of one API key and their usage, counted for all gateways if `shared` is set.

    What this process has used is counted in both cases, and bounds it while the shared store does
    not answer.
    """

    def __init__(
        self,
        name: str,
        limits: QuotaLimits,
        clock: Clock = time.monotonic,
        shared: "SharedQuota | None" = None,
        owner: str = "anonymous",
    ) -> None:
        self.name = name
        self.owner = owner  # owns stored files: unlike the name, it is unique to the key
        self._max_concurrent = limits.max_concurrent
        self._num_concurrent = 0
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._megapixels = _bucket(limits.megapixels_per_minute, clock)
        self._shared = shared

    async def take_request(self, num_requests: int = 1) -> None:
        """Count one request, or several at once, as for tiles.

        Raise `Overloaded` if the rate is exceeded, or `InvalidRequest` beyond a minute's quota.
        """
        if self._requests is None:
            return
        limit = f"{self._requests.per_minute:g} requests per minute"
        if num_requests > self._requests.per_minute:
            counted = f"its tiles count as {num_requests} requests"
            raise InvalidRequest(f"{counted}; the key {self.name!r} may send {limit}", "tiles")
        if wait_s := await self._take("requests", self._requests, num_requests):
            raise self._exceeded(limit, wait_s)

    async def take_pixels(self, num_pixels: int) -> None:
        """Count one image; raise `Overloaded`, or `ImageTooLarge` beyond a minute's quota."""
        if self._megapixels is None:
            return
        megapixels = num_pixels / _PIXELS_PER_MEGAPIXEL
        allowed = self._megapixels.per_minute
        if megapixels > allowed:
            allowance = f"the key {self.name!r} may send {allowed:g} per minute"
            raise ImageTooLarge(f"the image has {megapixels:g} megapixels; {allowance}", "image")
        if wait_s := await self._take("megapixels", self._megapixels, megapixels):
            raise self._exceeded(f"{allowed:g} megapixels per minute", wait_s)

    async def begin_request(self, timeout_s: float) -> str:
        """Count a concurrent request until `end_request`, at most `timeout_s` long.

        Raise `Overloaded` above the limit.

        Return its lease in the shared store, empty without one.
        """
        if self._max_concurrent is None:
            return ""
        if self._num_concurrent >= self._max_concurrent:
            raise self._too_many(self._max_concurrent)
        self._num_concurrent += 1
        if self._shared is None:
            return ""
        lease = uuid.uuid4().hex
        lease_s = timeout_s + _LEASE_MARGIN_S
        try:
            if await self._shared.lease(self._max_concurrent, lease, lease_s) is False:
                raise self._too_many(self._max_concurrent)
        except BaseException as error:
            self._num_concurrent -= 1
            if isinstance(error, asyncio.CancelledError):
                self._shared.release(lease)
            raise
        return lease  # also if the store did not answer: it may hold the lease

    async def end_request(self, lease: str) -> None:
        """Count a request as ended, even if the caller is cancelled."""
        if self._max_concurrent is None:
            return
        self._num_concurrent -= 1
        if self._shared is not None:
            # Awaited, as the client's next request may go to another gateway.
            await asyncio.shield(self._shared.release(lease))

    async def _take(self, unit: str, bucket: TokenBucket, amount: float) -> float:
        """Take from the shared bucket, else from the own one; return the seconds to wait."""
        wait_s = (
            None
            if self._shared is None
            else await self._shared.take(unit, bucket.per_minute, amount)
        )
        if wait_s:
            return wait_s
        own_wait_s = bucket.take(amount)
        return own_wait_s if wait_s is None else 0.0

    def _too_many(self, max_concurrent: int) -> Overloaded:
        return self._exceeded(f"{max_concurrent} concurrent requests", 1)

    def _exceeded(self, limit: str, wait_s: float) -> Overloaded:
        return Overloaded(f"the key {self.name!r} has reached its limit of {limit}", wait_s)


def _bucket(per_minute: int | None, clock: Clock) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, clock)


UNLIMITED = Quota("anonymous", NO_LIMITS)  # for all requests if the service has no API keys
