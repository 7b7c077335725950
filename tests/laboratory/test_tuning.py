"""The datasets of the examples in docs/fine-tuning.md."""

import json
from pathlib import Path
from typing import Any

import pytest

from laboratory.tuning import X, write_named_shapes, write_new_shape

NUM_BINS = 1000
STEP_BINS = 8


def read_coco(folder: Path) -> tuple[Any, list[str]]:
    """Return a dataset with the name of each of its boxes."""
    document = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    return document, [names[box["category_id"]] for box in document["annotations"]]


def test_boxes_are_on_the_trained_grid(tmp_path: Path) -> None:
    write_named_shapes(tmp_path, 6)
    document, labels = read_coco(tmp_path)
    assert labels
    assert all(len(label.split()) == 2 for label in labels)
    sides = {image["id"]: image["width"] for image in document["images"]}
    for annotation in document["annotations"]:
        x, y, width, height = annotation["bbox"]
        for edge in (x, y, x + width, y + height):
            steps = (edge / sides[annotation["image_id"]] * NUM_BINS - 0.5) / STEP_BINS
            assert steps == pytest.approx(round(steps), abs=1e-6)


def test_every_third_shape_is_an_x(tmp_path: Path) -> None:
    write_new_shape(tmp_path, 30)
    shares = {}
    images = list[bytes]()
    for folder in tmp_path.iterdir():
        _, labels = read_coco(folder)
        shares[folder.name] = labels.count(X) / len(labels)
        images += [path.read_bytes() for path in (folder / "images").iterdir()]
    assert len(set(images)) == len(images) == 120  # no scene is in two of them
    assert shares.pop("known") == 0
    assert shares == pytest.approx({"train": 1 / 3, "test": 1 / 3}, abs=0.15)
