import pytest

from loadtest.plan import base_plan, embedded_plan
from loadtest.workloads import LENGTHS, NUM_CLIENTS


def num_requests(request_s: float, allowance_s: float) -> dict[str, int]:
    return {step.workload: step.num_requests * step.num_rounds for step in base_plan(request_s, allowance_s)}


def test_a_slower_machine_gets_fewer_requests_of_every_kind() -> None:
    fast, slow = num_requests(0.5, 200), num_requests(8, 200)
    assert all(slow[workload] < fast[workload] for workload in fast)


def test_every_workload_has_its_least_number_however_slow_a_machine_is() -> None:
    least = num_requests(1000, 1)
    assert least["mixed"] == NUM_CLIENTS["mixed"]
    assert least["decode_heavy"] == len(LENGTHS)
    assert least["single"] == 3


@pytest.mark.parametrize("request_s", [0.2, 1, 3, 9])
def test_requests_come_in_whole_turns_of_clients_and_lengths(request_s: float) -> None:
    planned = num_requests(request_s, 200)
    assert planned["mixed"] % NUM_CLIENTS["mixed"] == 0
    assert planned["decode_heavy"] % len(LENGTHS) == 0


def test_what_was_expected_fits_the_time_of_a_server() -> None:
    planned = num_requests(2, 300)
    assert sum(planned.values()) * 2 <= 300


def test_only_endless_checkpoints_write_long_answers() -> None:
    assert [step.workload for step in embedded_plan(is_endless=True, is_quick=False)] == ["decode_heavy"]
    assert "decode_heavy" not in [step.workload for step in embedded_plan(is_endless=False, is_quick=False)]
