import pytest

from laboratory.bench.limits import precision_of, shares_of, steps_bytes
from laboratory.bench.machine import MachineRates
from laboratory.bench.operations import Operations
from laboratory.bench.rounds.servers import OURS_DEFAULT
from tests.support.bench_rounds import measurement, one_round, sample

OPERATIONS = Operations(
    encoder_operations=10**8, step_weights=1000, numbers_per_position=10, num_image_tokens=88
)
FLOAT32_BYTES, INT8_BYTES = steps_bytes(OPERATIONS)
RATES = [
    MachineRates(
        cores,
        cores * 2e11,
        cores * 4e11,
        1e10,
        {str(FLOAT32_BYTES): 8e7 * cores, str(INT8_BYTES): 5e7},
    )
    for cores in (1, 2)
]


def test_an_encoder_is_limited_by_products_and_a_step_by_memory() -> None:
    encoder, step = shares_of(
        measurement("m", {"single": [one_round([sample(0.1, num_tokens=11)])]}), OPERATIONS, RATES
    )
    assert encoder.measured_s == pytest.approx(0.001)
    assert [encoder.one_core, encoder.all_cores] == pytest.approx([0.5, 0.25])
    assert step.measured_s == pytest.approx(0.0001)  # a millisecond for ten tokens after the first
    assert step.one_core == pytest.approx(FLOAT32_BYTES / 0.0001 / 8e7)
    assert step.all_cores == pytest.approx(step.one_core / 2)


def test_int8_is_limited_by_int8_products_and_reads_fewer_bytes() -> None:
    listed = measurement(
        "m", {"single": [one_round([sample(0.1, num_tokens=11)])]}, OURS_DEFAULT, "int8"
    )
    encoder, step = shares_of(listed, OPERATIONS, RATES)
    assert encoder.one_core == pytest.approx(0.25)
    assert step.work == INT8_BYTES


def test_without_single_requests_there_are_no_shares() -> None:
    assert (
        shares_of(measurement("m", {"decode_heavy": [one_round([sample(0.1)])]}), OPERATIONS, RATES)
        == ()
    )


@pytest.mark.parametrize(
    ("listed", "part", "expected"),
    [
        ("float32", "decoder", "float32"),
        ("encoder int8, decoder float32", "encoder", "int8"),
        ("encoder int8, decoder float32", "decoder", "float32"),
    ],
)
def test_the_precision_of_a_part_is_parsed(listed: str, part: str, expected: str) -> None:
    assert precision_of(listed, part) == expected
