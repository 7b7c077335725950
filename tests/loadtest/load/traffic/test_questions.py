"""Questions of a mix, from the tasks that a service offers."""

import random
from collections import Counter
from pathlib import Path

import pytest

from loadtest.load.traffic.questions import COMPARED, Questions, offered_tasks
from loadtest.load.traffic.traffic_mix import MixError, TrafficMix, read_mix
from tests.loadtest.load.traffic.test_traffic_mix import mix_file

LISTED = {
    "data": [
        {"id": "ocr", "models": ["a", "b"], "result": "text"},
        {"id": "region_description", "models": ["a"], "result": "text"},
        {"id": "region_proposal", "models": [], "result": "detections"},
    ]
}
SLO = {"answer": 400, "first_token": 300}


def mix_of(folder: Path, *tasks: dict[str, object], **changes: object) -> TrafficMix:
    slos = {str(task["task"]): SLO for task in tasks}
    return read_mix(mix_file(folder, tasks=list(tasks), slos_ms=slos, **changes))


def test_tasks_are_chosen_by_weight_and_models_evenly(tmp_path: Path) -> None:
    mix = mix_of(
        tmp_path, {"task": "ocr", "weight": 3}, {"task": "region_description", "weight": 1}
    )
    questions = Questions(mix, LISTED, random.Random(0))
    asked = [questions.next("rest") for _ in range(4000)]
    counts = Counter((question.task, question.model) for question in asked)
    expected = {("ocr", "a"): 1500, ("ocr", "b"): 1500, ("region_description", "a"): 1000}
    assert counts.keys() == expected.keys()
    # 3 standard errors
    assert all(counts[key] == pytest.approx(count, rel=0.1) for key, count in expected.items())


def test_comparisons_are_of_tasks_that_several_models_offer(tmp_path: Path) -> None:
    mix = mix_of(
        tmp_path, {"task": "ocr", "weight": 1}, {"task": "region_description", "weight": 9}
    )
    questions = Questions(mix, LISTED, random.Random(0))
    drawn = [questions.next("compare") for _ in range(20)]
    assert {(each.task, each.model) for each in drawn} == {("ocr", COMPARED)}
    assert "model" not in drawn[0].form_fields()


def test_a_region_is_in_pixels_of_the_image(tmp_path: Path) -> None:
    share = {
        "task": "region_description",
        "weight": 1,
        "parameters": {"region": [0.25, 0.5, 0.75, 1.0]},
    }
    mix = mix_of(tmp_path, share)
    question = Questions(mix, LISTED, random.Random(0)).next("rest")
    assert question.parameters == {"region": [16, 24, 48, 48]}  # the image has 64 x 48
    assert question.form_fields() == {
        "task": "region_description",
        "model": "a",
        "region": "[16.0, 24.0, 48.0, 48.0]",
    }


def test_images_are_fresh_or_among_a_few(tmp_path: Path) -> None:
    mix = mix_of(tmp_path, {"task": "ocr", "weight": 1})  # half of them fresh
    questions = Questions(mix, LISTED, random.Random(0))
    images = [questions.next("rest").image for _ in range(400)]
    known = {image.number: image.jpeg for image in images if image.number is not None}
    fresh = [image.jpeg for image in images if image.number is None]
    assert len(known) == 8
    assert len(fresh) == pytest.approx(200, abs=30)  # 3 standard errors
    assert len({*fresh, *known.values()}) == len(fresh) + len(known)


@pytest.mark.parametrize(
    ("task", "apis", "problem"),
    [
        (
            "detection",
            {"rest": 1},
            "no task detection; its tasks are ocr, region_description, region_proposal",
        ),
        ("region_proposal", {"rest": 1}, "no served model offers region_proposal"),
        (
            "region_description",
            {"compare": 1},
            "apis.compare: no task of the mix is offered by several",
        ),
    ],
)
def test_parts_that_the_service_lacks_are_reported(
    tmp_path: Path, task: str, apis: dict[str, int], problem: str
) -> None:
    with pytest.raises(MixError, match=problem):
        offered_tasks(mix_of(tmp_path, {"task": task, "weight": 1}, apis=apis), LISTED)
