"""Errors that every interface answers with."""

import pytest

from service.errors import Overloaded, ServiceError


@pytest.mark.parametrize(("given_s", "whole_s"), [(0, 1), (0.2, 1), (1, 1), (1.2, 2), (60, 60)])
def test_retry_is_in_whole_seconds(given_s: float, whole_s: int) -> None:
    error = Overloaded("full", given_s)
    assert error.retry_after_s == whole_s
    assert error.message == f"full; retry after {whole_s} s"


def test_message_is_valid_text() -> None:
    assert ServiceError("half: \ud800").message == r"half: \ud800"
