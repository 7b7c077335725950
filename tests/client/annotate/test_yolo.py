"""The YOLO layout, read back."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from client import DetectionsResult
from client.annotate import AnnotationError
from client.annotate.classes import class_indices
from client.annotate.images import ImageFile
from client.annotate.yolo import check_names, joined_rings, label_lines, write_yolo
from client.masks import polygons_mask
from tests.support.client_answers import DETECTIONS, FAR_SQUARE, HOLE, INSTANCES, SIZE, SQUARE, record

RECORDS = (record(DETECTIONS, "a.png"), record(DetectionsResult(()), "sub/b.c.jpg"))
CLASSES = class_indices(RECORDS, ())


def numbers(text: str) -> list[list[float]]:
    return [[float(number) for number in line.split()] for line in text.splitlines()]


def test_a_line_is_class_and_centre_and_size_from_0_to_1() -> None:
    first, second, third = numbers(label_lines(RECORDS[0], CLASSES))
    assert first == pytest.approx([CLASSES["star"], 6 / 40, 7 / 20, 10 / 40, 10 / 20], abs=1e-6)
    assert second == pytest.approx([CLASSES["circle"], 25 / 40, 9 / 20, 10 / 40, 10 / 20], abs=1e-6)
    assert third == pytest.approx([CLASSES["star"], 33 / 40, 7 / 20, 6 / 40, 6 / 20], abs=1e-6)


def test_a_line_of_an_instance_is_its_outline() -> None:
    lines = label_lines(record(INSTANCES), {"ring": 0, "pair": 1})
    for line, rings in zip(numbers(lines), [(SQUARE, HOLE), (SQUARE, FAR_SQUARE)], strict=True):
        xs, ys = np.array(line[1::2]) * SIZE.width, np.array(line[2::2]) * SIZE.height
        ring = tuple(zip(xs.tolist(), ys.tolist(), strict=True))
        np.testing.assert_array_equal(polygons_mask([ring], SIZE), polygons_mask(rings, SIZE))


def test_one_ring_is_left_as_it_is() -> None:
    assert joined_rings([SQUARE]) == list(SQUARE)


def test_images_and_labels_lie_where_trainers_look(tmp_path: Path) -> None:
    for each in RECORDS:
        path = tmp_path / "photos" / each.image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.image.name.encode())
    for _ in range(2):  # a second run writes over the first
        dataset = write_yolo(tmp_path / "out", tmp_path / "photos", RECORDS, CLASSES)
    document = yaml.safe_load(dataset.read_text(encoding="utf-8"))
    assert document == {
        "path": str(tmp_path / "out"),
        "train": "images/train",
        "val": "images/train",
        "names": {0: "circle", 1: "star"},
    }
    train = Path(document["path"]) / document["train"]
    found = {str(path.relative_to(train)): path.read_bytes() for path in train.rglob("*.*")}
    assert found == {"a.png": b"a.png", "sub/b.c.jpg": b"sub/b.c.jpg"}
    labels = tmp_path / "out" / "labels" / "train"
    assert len(numbers((labels / "a.txt").read_text())) == 3
    assert (labels / "sub" / "b.c.txt").read_text() == ""


def test_names_of_any_language_are_read_back(tmp_path: Path) -> None:
    names = ['größe: "x"', "円 😀", "{a}", "no", "it's\\", "# 1"]
    (tmp_path / "out").mkdir()
    dataset = write_yolo(tmp_path / "out", tmp_path, (), {name: index for index, name in enumerate(names)})
    assert list(yaml.safe_load(dataset.read_text(encoding="utf-8"))["names"].values()) == names


def test_no_class_at_all_is_a_dataset_too(tmp_path: Path) -> None:
    dataset = write_yolo(tmp_path, tmp_path, (), {})
    assert yaml.safe_load(dataset.read_text(encoding="utf-8"))["names"] == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "a.jpg"], "2 images would share labels/train/a.txt"),
        (["x/images/a.png"], "must not be called images"),
    ],
)
def test_names_that_would_lose_labels_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        check_names([ImageFile(name, 1, 1) for name in names])
    check_names([ImageFile(name, 1, 1) for name in ("a.png", "x/a.jpg", "images.png")])
