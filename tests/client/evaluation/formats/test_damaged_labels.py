"""A damaged label is one line with its place, and is left out; a strict run stops at it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.inputs import Problems
from diptych_client.long_runs import RunError
from tests.support.evaluations import (
    write_coco,
    write_cvat,
    write_json_lines,
    write_label_studio,
    write_voc,
    write_yolo,
)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def coco_with(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(write_coco(folder) / "annotations.json", old, new)


def yolo_with(line: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (write_yolo(folder) / "labels" / "val" / "b.txt").write_text(f"\n{line}\n")

    return damage


def voc_with(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(write_voc(folder) / "Annotations" / "b.xml", old, new)


def cvat_with(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(write_cvat(folder) / "annotations.xml", old, new)


def label_studio_with(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(write_label_studio(folder) / "project-1.json", old, new)


def json_lines_with(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: edit(write_json_lines(folder) / "labels.jsonl", old, new)


DAMAGES = [
    (
        coco_with('"category_id": 7', '"category_id": 99'),
        r"annotations\.json, annotation id 1: category_id 99 is not in `categories`;"
        " annotation left out",
        2,
    ),
    (
        coco_with("[10.0, 10.0, 30.0, 20.0]", "[10.0, 10.0, -30.0, 20.0]"),
        r"annotation id 1: the box \[10.0, 10.0, -30.0, 20.0\] has no area",
        2,
    ),
    (coco_with("10.0, 30.0", "NaN, 30.0"), r"annotation id 1: the box .* is not finite", 2),
    (coco_with('"image_id": 1', '"image_id": 8'), "image_id 8 is not in `images`", 2),
    (
        coco_with('"area": 1.0', '"segmentation": [[1, 2]]'),
        "a polygon needs 3 points, got 2 numbers; outline left out",
        3,
    ),
    (yolo_with("0 0.5 x 0.1 0.1"), r"b\.txt, line 2: could not convert string to float: 'x'", 2),
    (yolo_with("9 0.5 0.5 0.1 0.1"), "line 2: class 9 is not one of the 2 classes", 2),
    (yolo_with("0 0.5 0.5 -0.1 0.1"), "line 2: the box .* has no area; object left out", 2),
    (yolo_with("0 50 50 10 10"), "must be parts of the image, 0 to 1", 2),
    (voc_with("<xmax>20.0<", "<xmax>-3<"), r"b\.xml, object 1: the box \[1.0, 1.0, -3, 20.0\]", 2),
    (voc_with("</annotation>", ""), r"b\.xml: is not readable as XML.*; image left out", 2),
    (cvat_with('xbr="40.0"', 'xbr="?"'), r"annotations\.xml, image 1 \(a\.png\): a box needs 4", 2),
    (cvat_with("<box", "<cuboid"), "a cuboid is neither a box nor a polygon; object left out", 2),
    (label_studio_with('"x": 10.0', '"x": "?"'), r"project-1\.json, task 1: could not convert", 2),
    (json_lines_with("[10.0, 10.0, 40.0, 30.0]", "[4]"), r"labels\.jsonl, line 1: expected an", 1),
]


@pytest.mark.parametrize(("damage", "line", "num_left"), DAMAGES)
def test_a_damaged_label_is_named_and_left_out(
    damage: Callable[[Path], None], line: str, num_left: int, tmp_path: Path
) -> None:
    damage(tmp_path)
    problems = Problems()
    dataset = read_dataset(tmp_path, problems=problems)
    assert sum(len(image.objects or ()) for image in dataset.images) == num_left
    (found,) = problems.lines
    with pytest.raises(RunError, match=line.partition(";")[0]):
        read_dataset(tmp_path, problems=Problems(is_strict=True))
    assert problems.counts.total() == 1
    assert "\n" not in found
    with pytest.raises(RunError, match=line):
        raise RunError(found)


def test_an_empty_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").touch()
    with pytest.raises(RunError, match=r"x\.json is empty; expected JSON"):
        read_dataset(tmp_path / "x.json")


def test_the_last_annotation_that_was_not_cancelled_counts(tmp_path: Path) -> None:
    file = write_label_studio(tmp_path) / "project-1.json"
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"].append({"was_cancelled": True, "result": []})
    file.write_text(json.dumps(tasks))
    assert len(read_dataset(tmp_path).images[0].objects or ()) == 2
