"""The metrics of requests."""

from itertools import pairwise

import pytest
from prometheus_client import Histogram

from service.telemetry.metrics import (
    REQUEST_SECONDS,
    STAGE_SECONDS,
    TIME_PER_OUTPUT_TOKEN_SECONDS,
    TIME_TO_FIRST_TOKEN_SECONDS,
)


@pytest.mark.parametrize(
    "histogram", [REQUEST_SECONDS, STAGE_SECONDS, TIME_PER_OUTPUT_TOKEN_SECONDS, TIME_TO_FIRST_TOKEN_SECONDS]
)
def test_times_have_buckets_from_1_ms_to_60_s_of_which_none_is_three_times_the_one_before(histogram: Histogram) -> None:
    bounds = [*histogram._upper_bounds][:-1]  # the last is infinite
    assert (bounds[0], bounds[-1]) == (0.001, 60)
    assert max(high / low for low, high in pairwise(bounds)) <= 3
