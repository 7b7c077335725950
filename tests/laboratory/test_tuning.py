"""The datasets of the examples in docs/fine-tuning.md."""

import json
from pathlib import Path

import pytest

from laboratory.things.catalogue import THINGS
from laboratory.tuning import KANGAROO, write_kangaroos, write_named_shapes
from tests.support.drawn_material import DrawnMaterial

NUM_BINS = 1000
STEP_BINS = 8


def edges(annotation: dict[str, list[float]]) -> tuple[float, float, float, float]:
    x, y, width, height = annotation["bbox"]
    return x, y, x + width, y + height


def test_shapes_are_named_by_colour_and_boxes_are_of_locations_that_models_write(
    tmp_path: Path,
) -> None:
    write_named_shapes(tmp_path, 6)
    document = json.loads((tmp_path / "annotations.json").read_text())
    assert all(len(each["name"].split()) == 2 for each in document["categories"])
    sides = {each["id"]: each["width"] for each in document["images"]}
    assert document["annotations"]
    for annotation in document["annotations"]:
        for edge in edges(annotation):
            steps = (edge / sides[annotation["image_id"]] * NUM_BINS - 0.5) / STEP_BINS
            assert steps == pytest.approx(round(steps), abs=1e-6)


def test_every_third_thing_is_one_that_models_do_not_know(tmp_path: Path) -> None:
    assert KANGAROO.emoji not in {thing.emoji for thing in THINGS}
    write_kangaroos(tmp_path, DrawnMaterial(), 30)
    counts = {}
    for folder in tmp_path.iterdir():
        document = json.loads((folder / "annotations.json").read_text())
        names = {each["id"]: each["name"] for each in document["categories"]}
        labels = [names[each["category_id"]] for each in document["annotations"]]
        counts[folder.name] = labels.count(KANGAROO.name) / len(labels)
    assert counts.pop("known") == 0
    assert counts == pytest.approx({"train": 1 / 3, "test": 1 / 3}, abs=0.15)
