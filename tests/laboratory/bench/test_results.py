import math

import pytest

from laboratory.bench.measures import numbers_of
from laboratory.bench.results import Target, compare, comparisons
from tests.support.bench_rounds import OTHER_PEER, PEER, measurement, one_round, run, sample

RATE = Target("mixed", "requests_per_s", "florence-2-mini", 2)
TIME = Target("single", "p50_s", "florence-2-mini", 1)


@pytest.mark.parametrize(
    ("target", "ratio", "expected"),
    [
        (RATE, 2.0, True),
        (RATE, 1.99, False),
        (TIME, 1.0, True),
        (TIME, 1.01, False),
        (RATE, math.nan, None),
    ],
)
def test_rates_have_a_lower_and_times_an_upper_bound(
    target: Target, ratio: float, expected: bool | None
) -> None:
    assert target.is_met(ratio) is expected


def test_the_best_peer_is_chosen_by_the_targets_measure() -> None:
    slow_but_many = numbers_of([one_round([sample(0.9)] * 30)])
    quick_but_few = numbers_of([one_round([sample(0.1)] * 10)])
    ours = numbers_of([one_round([sample(0.2)] * 60)])
    peers = {"many": slow_but_many, "quick": quick_but_few}
    by_rate, by_time = (compare(target, ours, peers) for target in (RATE, TIME))
    assert (by_rate.best_peer, by_rate.ratio, by_rate.is_met) == ("many", 2.0, True)
    assert (by_time.best_peer, by_time.ratio, by_time.is_met) == ("quick", 2.0, False)


def test_every_model_is_compared_with_its_own_peers() -> None:
    fast = [one_round([sample(0.1)] * 10)]
    slow = [one_round([sample(0.1)] * 4)]
    found = comparisons(
        run(
            measurement("florence-2-mini", {"mixed": fast}),
            measurement("florence-2-mini", {"mixed": slow}, PEER),
            measurement("paligemma-mini", {"mixed": slow}),
            measurement("paligemma-mini", {"mixed": fast}, OTHER_PEER),
        )
    )
    assert [(one.target.model, one.best_peer, one.ratio) for one in found] == [
        ("florence-2-mini", "litserve 16", 2.5),
        ("paligemma-mini", "fastapi", 0.4),
    ]


def test_a_model_without_a_peer_has_no_ratio() -> None:
    assert (
        comparisons(run(measurement("florence-2-mini", {"mixed": [one_round([sample(0.1)])]})))
        == []
    )
