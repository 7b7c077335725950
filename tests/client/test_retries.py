"""When a call is tried again, and after how long."""

from datetime import UTC, datetime

import pytest

from client import ConnectionFailed, DiptychError, ErrorDetail, InternalError, InvalidRequest, NotReady, Overloaded
from client.retries import CallTime, retry_after_s, wait_before_retry_s

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
DETAIL = ErrorDetail("any", "", None, "r")


@pytest.mark.parametrize("kind", [Overloaded, NotReady, ConnectionFailed])
def test_the_service_says_how_long(kind: type[DiptychError]) -> None:
    assert wait_before_retry_s(kind(DETAIL, 3.0), 0, 10.0, jitter=0.7) == 3.0
    assert wait_before_retry_s(kind(DETAIL, 0.0), 5, 10.0, jitter=0.7) == 0.0


def test_otherwise_the_wait_doubles_up_to_a_limit_and_up_to_half_of_it_is_left_out() -> None:
    waits_s = [wait_before_retry_s(ConnectionFailed(DETAIL), n, 60.0, jitter=0.0) for n in range(8)]
    assert waits_s == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
    assert wait_before_retry_s(ConnectionFailed(DETAIL), 0, 60.0, jitter=1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", [InvalidRequest, InternalError, DiptychError])
def test_other_errors_are_final(kind: type[DiptychError]) -> None:
    assert wait_before_retry_s(kind(DETAIL, 1.0), 0, 60.0, jitter=0.0) is None


def test_no_wait_goes_beyond_the_deadline() -> None:
    assert wait_before_retry_s(Overloaded(DETAIL, 5.0), 0, 5.0, jitter=0.0) is None
    assert wait_before_retry_s(Overloaded(DETAIL), 0, 0.05, jitter=0.0) is None


def test_so_many_retries_and_no_more() -> None:
    call, error = CallTime(60.0, max_retries=2), Overloaded(DETAIL, 0.0)
    assert [call.wait_after_s(error), call.wait_after_s(error)] == [0.0, 0.0]
    with pytest.raises(Overloaded):
        call.wait_after_s(error)


def test_the_time_that_is_left_shrinks_and_is_never_none() -> None:
    assert 0 < CallTime(60.0, 0).remaining_s() <= 60
    assert 0 < CallTime(-1.0, 0).remaining_s() <= 0.001


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("120", 120),
        ("Fri, 01 May 2026 12:00:30 GMT", 30),
        ("Fri, 01 May 2026 11:00:00 GMT", 0),
        ("Fri, 01 May 2026 12:00:30", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds
