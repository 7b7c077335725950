from pathlib import Path

import pytest

from loadtest.workloads import LENGTHS, SHORT_TOKENS, Scenes, decode_heavy, every_task, mixed, requests_of
from tests.support.bench_rounds import TASKS, scene


def test_no_two_rounds_see_the_same_image() -> None:
    scenes = Scenes([scene(index) for index in range(6)])
    first, second = (requests_of("mixed", scenes, 3) for _ in range(2))
    images = [request.image for request in (*first, *second)]
    assert images == [Path(f"{index}.png") for index in range(6)]


def test_too_few_scenes_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 scenes too few"):
        requests_of("mixed", Scenes([scene(0)]), 3)


def test_mixed_goes_round_the_tasks_and_then_round_their_questions() -> None:
    asked = [request.question.name for request in mixed([scene(index) for index in range(4)])]
    assert asked == ["captioning 1", "object_detection 0", "ocr 0", "captioning 0"]


def test_one_image_is_asked_every_task_once() -> None:
    requests = every_task(scene(7))
    assert [request.question.task for request in requests] == list(TASKS)
    assert {request.image for request in requests} == {Path("7.png")}


def test_decode_heavy_asks_for_every_length_about_one_image() -> None:
    requests = decode_heavy(scene(0), 2 * len(LENGTHS))
    assert [request.max_new_tokens for request in requests] == [*LENGTHS, *LENGTHS]
    assert min(LENGTHS) == SHORT_TOKENS == 8
    assert max(LENGTHS) == 256
    assert len({request.image for request in requests}) == 1
