"""The YOLO layout, read back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from diptych_client import AnswerOptions, DetectionsResult, TaskParameters
from diptych_client.evaluation.formats.writing import (
    DatasetFormat,
    check_format,
    class_indices,
    write_dataset,
)
from diptych_client.evaluation.formats.yolo import joined_rings, yolo_lines
from diptych_client.evaluation.job import Job, Record
from diptych_client.geometry import polygons_mask
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import Outputs, RunError
from tests.support.client_answers import (
    DETECTIONS,
    FAR_SQUARE,
    HOLE,
    INSTANCES,
    SIZE,
    SQUARE,
    record,
)

RECORDS = (record(DETECTIONS, "a.png"), record(DetectionsResult(()), "sub/b.c.jpg"))
CLASSES = class_indices(RECORDS, ())


def write(out: Path, folder: Path, records: Sequence[Record], labels: Sequence[str] = ()) -> Path:
    out.mkdir(exist_ok=True)
    job = Job("object_detection", "some-model", TaskParameters(labels=labels), AnswerOptions())
    with Outputs(out) as outputs:
        return write_dataset(DatasetFormat.yolo, outputs, folder, records, job)


def numbers(text: str) -> list[list[float]]:
    return [list(map(float, line.split())) for line in text.splitlines()]


def test_a_line_is_class_centre_and_size_from_0_to_1() -> None:
    first, second, third = numbers(yolo_lines(RECORDS[0], CLASSES))
    assert first == pytest.approx([CLASSES["star"], 6 / 40, 7 / 20, 10 / 40, 10 / 20], abs=1e-6)
    assert second == pytest.approx([CLASSES["circle"], 25 / 40, 9 / 20, 10 / 40, 10 / 20], abs=1e-6)
    assert third == pytest.approx([CLASSES["star"], 33 / 40, 7 / 20, 6 / 40, 6 / 20], abs=1e-6)


def test_a_line_of_an_instance_is_its_outline() -> None:
    lines = yolo_lines(record(INSTANCES), {"ring": 0, "pair": 1})
    for line, rings in zip(numbers(lines), [(SQUARE, HOLE), (SQUARE, FAR_SQUARE)], strict=True):
        xs = np.array(line[1::2]) * SIZE.width
        ys = np.array(line[2::2]) * SIZE.height
        ring = tuple(zip(xs.tolist(), ys.tolist(), strict=True))
        np.testing.assert_array_equal(polygons_mask([ring], SIZE), polygons_mask(rings, SIZE))


def test_one_ring_is_left_as_it_is() -> None:
    assert joined_rings([SQUARE]) == list(SQUARE)


def test_images_and_labels_are_where_trainers_expect_them(tmp_path: Path) -> None:
    for each in RECORDS:
        path = tmp_path / "photos" / each.image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.image.name.encode())
    for _ in range(2):  # a second run overwrites the first
        dataset = write(tmp_path / "out", tmp_path / "photos", RECORDS)
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
    dataset = write(tmp_path / "out", tmp_path, (), names)
    assert list(yaml.safe_load(dataset.read_text(encoding="utf-8"))["names"].values()) == names


def test_a_dataset_may_have_no_class(tmp_path: Path) -> None:
    dataset = write(tmp_path / "out", tmp_path, ())
    assert yaml.safe_load(dataset.read_text(encoding="utf-8"))["names"] == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "a.jpg"], "2 images would share labels/train/a.txt"),
        (["x/images/a.png"], "must not be named images"),
    ],
)
def test_names_that_would_lose_labels_are_rejected(names: list[str], message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_format(DatasetFormat.yolo, "detections", [ImageFile(name, 1, 1) for name in names])
    allowed = [ImageFile(name, 1, 1) for name in ("a.png", "x/a.jpg", "images.png")]
    check_format(DatasetFormat.yolo, "detections", allowed)
