"""When a call is tried again, and how long to wait before. Knows no connection and no clock but time.monotonic().

Again after an answer that says "later" (Overloaded, NotReady) and after a failed connection; never after the deadline.
The wait is what the service asked for, otherwise it doubles from try to try, with a random half of it left out so that
clients that failed together do not come back together.
"""

import random
import time
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime

from client.errors import ConnectionFailed, DiptychError, NotReady, Overloaded

_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
_SHORTEST_TIMEOUT_S = 0.001  # a wait may end late
_WORTH_ANOTHER_TRY = (Overloaded, NotReady, ConnectionFailed)


def wait_before_retry_s(error: DiptychError, num_retries: int, remaining_s: float, jitter: float) -> float | None:
    """Return the seconds to wait before the next try, None where none is worth it; `jitter` is 0 to 1.

    A service that asks for more time than is left is not asked again: it would be too early or too late.
    """
    if not isinstance(error, _WORTH_ANOTHER_TRY):
        return None
    doubled_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(num_retries, 10))
    wait_s = doubled_s * (1 - jitter / 2) if error.retry_after_s is None else error.retry_after_s
    return wait_s if wait_s < remaining_s else None


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After asks for, given as seconds or as a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


@dataclass(slots=True)
class CallTime:
    """The time and the tries of one call, from its start."""

    timeout_s: float
    max_retries: int
    num_retries: int = 0
    start_s: float = field(default_factory=time.monotonic)

    def remaining_s(self) -> float:
        """Return the seconds that are left: the deadline of the next try."""
        return max(_SHORTEST_TIMEOUT_S, self.timeout_s - (time.monotonic() - self.start_s))

    def wait_after_s(self, error: DiptychError) -> float:
        """Return the seconds to wait before the next try; raise `error` where there is none."""
        wait_s = wait_before_retry_s(error, self.num_retries, self.remaining_s(), random.random())
        if wait_s is None or self.num_retries == self.max_retries:
            raise error
        self.num_retries += 1
        return wait_s
