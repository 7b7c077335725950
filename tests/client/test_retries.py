"""The retry policy: which errors are retried, after which delays, until when.

Nothing sleeps here.
"""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tenacity import Retrying

from diptych_client import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
)
from diptych_client.clients.caller import retrying
from diptych_client.errors import parse_retry_after_s

DETAIL = ErrorDetail("any", "", None, "r")


def delays_s(error: DiptychError, timeout_s: float = 3600.0, max_retries: int = 8) -> list[float]:
    """Return the delays between the attempts of a call that always fails with `error`."""
    delays: list[float] = []

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        retrying(Retrying, timeout_s, max_retries).copy(sleep=delays.append)(fail)
    assert caught.value is error
    return delays


@pytest.mark.parametrize("kind", [Overloaded, NotReady, ConnectionFailed])
@pytest.mark.parametrize("retry_after_s", [0.0, 3.0, 30.0])
def test_the_delay_is_the_retry_after_of_the_service(
    kind: type[DiptychError], retry_after_s: float
) -> None:
    assert delays_s(kind(DETAIL, retry_after_s), max_retries=3) == [retry_after_s] * 3


def test_without_retry_after_the_delay_doubles_up_to_a_limit_and_half_of_it_is_random() -> None:
    longest_s = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    many = [delays_s(ConnectionFailed(DETAIL)) for _ in range(200)]
    for column, limit_s in zip(zip(*many, strict=True), longest_s, strict=True):
        assert limit_s / 2 <= min(column) < 0.6 * limit_s
        assert 0.9 * limit_s < max(column) <= limit_s


@pytest.mark.parametrize("kind", [InvalidRequest, InternalError, DeadlineExceeded, DiptychError])
def test_other_errors_are_not_retried(kind: type[DiptychError]) -> None:
    assert delays_s(kind(DETAIL, 1.0)) == []


def test_a_delay_beyond_the_deadline_is_not_waited_for() -> None:
    assert delays_s(Overloaded(DETAIL, 5.0), timeout_s=5.0) == []
    assert delays_s(Overloaded(DETAIL), timeout_s=0.05) == []


@pytest.mark.parametrize("max_retries", [0, 2])
def test_the_number_of_retries_is_limited(max_retries: int) -> None:
    assert len(delays_s(Overloaded(DETAIL, 0.0), max_retries=max_retries)) == max_retries


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        ("Fri, 01 May 2026 11:00:00 GMT", 0),
        ("Fri, 01 May 2026 12:00:30", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after_s(header) == seconds


def test_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert parse_retry_after_s(soon) == pytest.approx(30, abs=5)
