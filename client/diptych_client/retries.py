"""When a failed call is retried, and after which delay; the parser of Retry-After.

Retried are Overloaded, NotReady and ConnectionFailed, after the seconds of Retry-After, or with
exponential backoff and jitter where the response has none. A delay that would end after the
deadline is not waited for.
"""

from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import (
    BaseRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random_exponential,
)

from diptych_client.errors import ConnectionFailed, DiptychError, NotReady, Overloaded

RetryingT = TypeVar("RetryingT", bound=BaseRetrying)
Delay = Callable[[RetryCallState], float]

# Half of the delay is fixed, half random: 0.1 to 0.2 s first, then doubled, at most 10 s.
BACKOFF: Delay = wait_exponential(0.1, max=5) + wait_random_exponential(0.1, max=5)


def retrying(kind: type[RetryingT], timeout_s: float, max_retries: int) -> RetryingT:
    """Return the retry loop of one call, which starts now."""
    return kind(
        retry=retry_if_exception_type((Overloaded, NotReady, ConnectionFailed)),
        wait=_delay_s,
        stop=stop_after_attempt(max_retries + 1) | stop_before_delay(timeout_s),
        reraise=True,
    )


def _delay_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    retry_after = error.retry_after_s if isinstance(error, DiptychError) else None
    return BACKOFF(state) if retry_after is None else retry_after


def parse_retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return None
