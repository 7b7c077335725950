import math

import pytest

from laboratory.bench.measures import STAGES, num_equal, num_other_length, numbers_of, profile_of
from tests.support.bench_rounds import one_round, sample


def test_rates_are_medians_of_rounds_and_percentiles_are_over_all_answers() -> None:
    rounds = [one_round([sample(0.1)] * 10, elapsed_s) for elapsed_s in (1.0, 2.0, 10.0)]
    rounds[0] = one_round([sample(0.4, num_tokens=32)] * 10, 1.0)
    numbers = numbers_of(rounds)
    assert (numbers.num_rounds, numbers.num_answered) == (3, 30)
    assert numbers.requests_per_s == 5
    assert numbers.tokens_per_s == 80
    assert (numbers.p50_s, numbers.p95_s) == (0.1, 0.4)
    assert numbers.cpu_s_per_request == pytest.approx(1.5 / 30)


def test_short_answers_have_a_percentile_of_their_own() -> None:
    numbers = numbers_of([one_round([sample(9.0, 256), sample(0.2, 8), sample(0.3, 8)])])
    assert numbers.short_p95_s == 0.3
    assert math.isnan(numbers_of([one_round([sample(9.0, 256)])]).short_p95_s)


def test_answers_are_compared_request_by_request() -> None:
    ours = [one_round([sample(1, text="a"), sample(1, text="b")]), one_round([sample(1, text="c")])]
    theirs = [
        one_round([sample(2, text="a"), sample(2, text="x")]),
        one_round([sample(2, text="c")]),
    ]
    assert num_equal(ours, theirs) == (2, 3)


def test_a_cut_round_is_not_compared() -> None:
    assert num_equal([one_round([sample(1)])], [one_round([], is_cut=True)]) == (0, 0)


def test_answers_of_another_length_than_requested_are_counted() -> None:
    assert (
        num_other_length([one_round([sample(1, 16, 16), sample(1, 16, 3), sample(1, 8, 8)])]) == 1
    )


def test_stages_and_the_rest_add_up_to_the_latency() -> None:
    profile = profile_of([sample(0.05), sample(0.03)])
    assert sum(profile.stages_ms.values()) == pytest.approx(profile.latency_ms)
    assert profile.stages_ms["between"] == pytest.approx(2)
    assert profile.stages_ms["http"] == pytest.approx(40 - len(STAGES) - 2)
