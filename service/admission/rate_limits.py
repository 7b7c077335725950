"""How much may be taken in a time: a bucket that refills. It knows neither keys nor requests.

Source: RFC 2697's token bucket, with one rate.
"""

from collections.abc import Callable

Clock = Callable[[], float]  # seconds, as time.monotonic


class TokenBucket:
    """Holds at most what one minute refills, and is full at first."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._filled_s = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it is there.

        They are infinite for what the full bucket does not hold.
        """
        self._fill()
        if amount <= self._level:
            self._level -= amount
            return 0.0
        missing = amount - self._level
        return missing * 60 / self.per_minute if amount <= self.per_minute else float("inf")

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._filled_s) * self.per_minute / 60)
        self._filled_s = now_s
