"""The traffic mix, and the questions that it makes of the tasks that a service offers."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.traffic import APIS, COMPARED, MixError, Questions, offered_tasks, read_mix
from tests.support.export_cli import ROOT

LISTING = {
    "data": [
        {"id": "ocr", "models": ["a", "b"], "result": "text"},
        {"id": "region_description", "models": ["a"], "result": "text"},
        {"id": "region_proposal", "models": [], "result": "detections"},
    ]
}
OCR = {"task": "ocr", "weight": 3}
DESCRIPTION = {"task": "region_description", "weight": 1}


def mix_file(folder: Path, **changes: Any) -> Path:
    """Write a small mix with changed parts; None removes a part."""
    parts: dict[str, Any] = {
        "apis": {"rest": 1},
        "new_images": 0.5,
        "image_sizes": [{"width": 64, "height": 48, "weight": 1}],
        "tasks": [OCR],
        "deadline_s": 0.4,
    }
    file = folder / "mix.yaml"
    remaining = {name: part for name, part in (parts | changes).items() if part is not None}
    file.write_text(yaml.safe_dump(remaining), encoding="utf-8")
    return file


def questions(folder: Path, *tasks: dict[str, Any]) -> Questions:
    return Questions(read_mix(mix_file(folder, tasks=list(tasks))), LISTING, random.Random(0))


def test_committed_mix_has_every_interface() -> None:
    mix = read_mix(ROOT / "loadtest" / "traffic_mix.yaml")
    assert set(mix.apis) == set(APIS)
    assert all(mix.apis.values())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"new_images": None}, "new_images: Field required"),
        ({"colour": "red"}, "colour: "),
        ({"apis": {"soap": 1}}, "soap"),
        ({"apis": {"rest": -1}}, "apis.rest: Input should be greater than or equal to 0"),
        ({"apis": {"rest": 0}}, "apis: one of rest, grpc, stream, compare must have a weight"),
        ({"tasks": [OCR | {"weight": 0}]}, "tasks.0.weight: Input should be greater than 0"),
        ({"deadline_s": 0}, "deadline_s: Input should be greater than 0, given '0'"),
    ],
)
def test_invalid_mix_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    file = mix_file(tmp_path, **changes)
    with pytest.raises(MixError) as raised:
        read_mix(file)
    assert str(raised.value).startswith(f"{file}:\n")
    assert problem in str(raised.value)


def test_unreadable_mix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    for name in ("bad.yaml", "none.yaml"):
        with pytest.raises(MixError, match=f"{name} cannot be read"):
            read_mix(tmp_path / name)


def test_tasks_are_drawn_by_weight_and_models_evenly(tmp_path: Path) -> None:
    supply = questions(tmp_path, OCR, DESCRIPTION)
    drawn = [supply.next("rest") for _ in range(2000)]  # of one seed: always the same
    counts = Counter((question.task, question.model) for question in drawn)
    expected = {("ocr", "a"): 750, ("ocr", "b"): 750, ("region_description", "a"): 500}
    assert counts == pytest.approx(expected, rel=0.15)
    assert {question.deadline_s for question in drawn} == {0.4}


def test_comparisons_are_of_tasks_of_several_models(tmp_path: Path) -> None:
    supply = questions(tmp_path, OCR, DESCRIPTION | {"weight": 9})
    drawn = [supply.next("compare") for _ in range(20)]
    assert {(question.task, question.model) for question in drawn} == {("ocr", COMPARED)}
    assert drawn[0].fields() == {"task": "ocr"}


def test_region_is_in_pixels(tmp_path: Path) -> None:
    region = {"parameters": {"region": [0.25, 0.5, 0.75, 1.0]}}
    question = questions(tmp_path, DESCRIPTION | region).next("rest")
    fields = {"task": "region_description", "model": "a", "region": [16, 24, 48, 48]}
    assert question.fields() == fields  # the image has 64 x 48


def test_images_are_new_or_among_a_few(tmp_path: Path) -> None:
    supply = questions(tmp_path, OCR)
    images = [supply.next("rest").image for _ in range(200)]
    repeated = {image.number: image.jpeg for image in images if image.number is not None}
    fresh = [image.jpeg for image in images if image.number is None]
    assert len(repeated) == 8
    assert len({*fresh, *repeated.values()}) == len(fresh) + len(repeated)
    assert 70 < len(fresh) < 130  # half of them


@pytest.mark.parametrize(
    ("task", "apis", "problem"),
    [
        ("detection", {"rest": 1}, "no task detection; its tasks are ocr, region_description"),
        ("region_proposal", {"rest": 1}, "no served model offers region_proposal"),
        ("region_description", {"compare": 1}, "apis.compare: no task of the mix is offered"),
    ],
)
def test_parts_that_the_service_lacks_are_refused(
    tmp_path: Path, task: str, apis: dict[str, int], problem: str
) -> None:
    mix = read_mix(mix_file(tmp_path, tasks=[{"task": task, "weight": 1}], apis=apis))
    with pytest.raises(MixError, match=problem):
        offered_tasks(mix, LISTING)
