"""The arithmetic from a report of the bench to processes, network and memory."""

import dataclasses

import pytest

from loadtest.capacity import MODELS, Cost, Fleet, Report

REPORT = """
| model | server | setting |  | answered | req/s | tokens/s | p50 ms | p95 ms | p99 ms | CPU ms |
| florence-2-mini | diptych | float32 | a | 192 of 192 | 50 | 500 | 1 | 1 | 1 | 25 |
| florence-2-mini | fastapi | lock | a | 192 of 192 | 5 | 50 | 1 | 1 | 1 | 99 |
| florence-2-mini-endless | diptych | float32 | c | 96 of 96 | 20 | 1000 | 1 | 1 | 1 | 30 |
| florence-2-mini | encoder | float32 | 0.5 | 8 | 62.5 | 67 % | 35 % |
| florence-2-mini | encoder | int8 | 0.5 | 4 | 62.5 | 67 % | 35 % |
| florence-2-mini | d | 30 | 4 | 5 | 8 | 6 | 12 | 1 | 2 | 3 | 40 |
| florence-2-mini | a | 30 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 99 |
"""


@pytest.fixture
def cost() -> Cost:
    return Cost.of(MODELS[0], Report(REPORT))


def test_costs_are_read_from_their_rows(cost: Cost) -> None:
    assert cost.gateway_s == pytest.approx(0.010)  # 4 + 1 + 2 + 3
    assert (cost.encoder_s, cost.prefill_s, cost.num_tokens) == (0.008, 0.006, 10)
    assert cost.token_s == pytest.approx((1 / 20 - 0.006) / 50)
    assert cost.decoder_s == pytest.approx(0.006 + 10 * 0.00088)
    assert cost.total_s == pytest.approx(0.010 + 0.008 + 0.0148)
    assert cost.measured_s == 0.025


def test_processes_are_seven_tenths_busy_and_whole(cost: Cost) -> None:
    fleet = Fleet(cost, 1000)
    assert (fleet.num_gateways, fleet.num_encoders, fleet.num_decoders) == (15, 12, 22)
    assert fleet.num_cores == 49


def test_parts_of_two_threads_are_half_as_many_and_take_two_cores(cost: Cost) -> None:
    wide = dataclasses.replace(cost, model=dataclasses.replace(cost.model, num_threads=2))
    assert (Fleet(wide, 1000).num_encoders, Fleet(wide, 1000).num_decoders) == (6, 11)
    assert Fleet(wide, 1000).num_cores == 15 + 2 * 17


def test_network_and_cache_grow_with_the_rate(cost: Cost) -> None:
    features, pixels = 145 * 128 * 4, 3 * 192 * 192
    assert Fleet(cost, 1000).clients_gbit == pytest.approx(0.8)
    assert Fleet(cost, 1000).apart_gbit == pytest.approx(1000 * (pixels + 2 * features) * 8 / 1e9)
    assert Fleet(cost, 1000).cache_gb == pytest.approx(1000 * 60 * features / 1e9)


def test_a_report_without_the_row_says_which() -> None:
    with pytest.raises(ValueError, match="0 rows paligemma-mini"):
        Cost.of(MODELS[1], Report(REPORT))
