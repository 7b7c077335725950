"""Errors that every interface answers with."""

import pytest

from service.errors import Overloaded


def test_a_retry_is_asked_for_after_at_least_a_second() -> None:
    assert Overloaded("full").retry_after_s == 1


@pytest.mark.parametrize(("given_s", "whole_s"), [(0, 1), (0.2, 1), (1, 1), (1.2, 2), (60, 60)])
def test_the_time_of_a_retry_is_rounded_up_to_whole_seconds(given_s: float, whole_s: int) -> None:
    error = Overloaded("full", given_s)
    assert error.retry_after_s == whole_s
    assert error.message == f"full; retry after {whole_s} s"
