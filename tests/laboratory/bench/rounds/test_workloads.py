from pathlib import Path

import pytest

from laboratory.bench.rounds.workloads import (
    LENGTHS,
    NUM_CLIENTS,
    SHORT_TOKENS,
    Scenes,
    base_plan,
    decode_heavy,
    embedded_plan,
    every_task,
    mixed,
    requests_of,
)
from tests.support.bench_rounds import TASKS, scene


def test_no_two_rounds_have_the_same_image() -> None:
    scenes = Scenes([scene(index) for index in range(6)])
    first, second = (requests_of("mixed", scenes, 3) for _ in range(2))
    images = [request.image for request in (*first, *second)]
    assert images == [Path(f"{index}.png") for index in range(6)]


def test_too_few_scenes_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 scenes too few"):
        requests_of("mixed", Scenes([scene(0)]), 3)


def test_mixed_cycles_through_tasks_and_through_their_questions() -> None:
    scenes = [scene(index) for index in range(4)]
    names = [request.question.name for request in mixed(scenes)]
    assert names == ["captioning 1", "object_detection 0", "ocr 0", "captioning 0"]


def test_one_image_has_one_request_for_each_task() -> None:
    requests = every_task(scene(7))
    assert [request.question.task for request in requests] == list(TASKS)
    assert {request.image for request in requests} == {Path("7.png")}


def test_decode_heavy_has_every_length_about_one_image() -> None:
    requests = decode_heavy(scene(0), 2 * len(LENGTHS))
    assert [request.max_new_tokens for request in requests] == [*LENGTHS, *LENGTHS]
    assert min(LENGTHS) == SHORT_TOKENS == 8
    assert max(LENGTHS) == 256
    assert len({request.image for request in requests}) == 1


def num_requests(request_s: float, allowance_s: float) -> dict[str, int]:
    return {
        step.workload: step.num_requests * step.num_rounds
        for step in base_plan(request_s, allowance_s)
    }


def test_a_slower_machine_gets_fewer_requests_of_every_workload() -> None:
    fast = num_requests(0.5, 200)
    slow = num_requests(8, 200)
    assert all(slow[workload] < fast[workload] for workload in fast)


def test_every_workload_has_a_minimum_of_requests() -> None:
    least = num_requests(1000, 1)
    assert least["mixed"] == NUM_CLIENTS["mixed"]
    assert least["decode_heavy"] == len(LENGTHS)
    assert least["single"] == 3


@pytest.mark.parametrize("request_s", [0.2, 1, 3, 9])
def test_numbers_of_requests_are_multiples_of_clients_and_lengths(request_s: float) -> None:
    planned = num_requests(request_s, 200)
    assert planned["mixed"] % NUM_CLIENTS["mixed"] == 0
    assert planned["decode_heavy"] % len(LENGTHS) == 0


def test_expected_times_fit_the_time_of_a_server() -> None:
    planned = num_requests(2, 300)
    assert sum(planned.values()) * 2 <= 300


def test_only_endless_checkpoints_generate_long_answers() -> None:
    assert [step.workload for step in embedded_plan(is_endless=True)] == ["decode_heavy"]
    assert "decode_heavy" not in [step.workload for step in embedded_plan(is_endless=False)]
