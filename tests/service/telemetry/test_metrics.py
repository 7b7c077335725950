"""The metrics of requests."""

import math
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
    "histogram",
    [REQUEST_SECONDS, STAGE_SECONDS, TIME_PER_OUTPUT_TOKEN_SECONDS, TIME_TO_FIRST_TOKEN_SECONDS],
)
def test_buckets_of_times(histogram: Histogram) -> None:
    *bounds, last, infinite = histogram._upper_bounds
    assert (bounds[0], last, infinite) == (0.001, 60, math.inf)
    assert {f"{bound:e}"[0] for bound in bounds} == set("125")
    assert max(high / low for low, high in pairwise([*bounds, last])) <= 3
