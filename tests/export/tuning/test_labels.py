import json
import re
import shutil
from collections.abc import Callable
from itertools import starmap
from pathlib import Path

import pytest

from export.checkpoints.errors import TuningError
from export.scenes.truth import LabelledBox
from export.tuning.dataset import read_labels
from export.tuning.labels import LabelledImage
from tasks.results import BoxXyxy
from tests.support.evaluations import (
    OBJECTS,
    write_coco,
    write_images,
    write_json_lines,
    write_voc,
    write_yolo,
)

TRUE_BOXES = {name: tuple(starmap(LabelledBox, own)) for name, own in OBJECTS.items()}


def rounded(box: BoxXyxy) -> BoxXyxy:
    """Parts of a side in YOLO's files are not exact."""
    x1, y1, x2, y2 = box
    return (round(x1, 6), round(y1, 6), round(x2, 6), round(y2, 6))


ROWS: dict[str, dict[str, object]] = {
    "captions": {"caption": "two cats"},
    "several captions": {"captions": ["two cats", "cats"]},
    "text": {"text": "EXIT"},
    "region": {"text": "EXIT", "region": [1, 2, 30, 40]},
    "question": {"question": "how many?", "answers": ["2", {"answer": "two"}]},
    "one answer": {"question": "how many?", "answer": "2"},
    "phrases": {"phrases": [{"phrase": "left  cat", "box": [1, 2, 30, 40]}]},
}
EXPECTED: dict[str, dict[str, object]] = {
    "captions": {"captions": ("two cats",)},
    "several captions": {"captions": ("two cats", "cats")},
    "text": {"text": "EXIT"},
    "region": {"text": "EXIT", "region_xyxy": (1.0, 2.0, 30.0, 40.0)},
    "question": {"questions": (("how many?", ("2", "two")),)},
    "one answer": {"questions": (("how many?", ("2",)),)},
    "phrases": {"phrases": (LabelledBox("left cat", (1.0, 2.0, 30.0, 40.0)),)},
}


def write_rows(folder: Path, *lines: str) -> Path:
    write_images(folder)
    (folder / "labels.jsonl").write_text("\n".join(lines))
    return folder


def yolo_to_train_on(folder: Path) -> Path:
    yaml = write_yolo(folder) / "data.yaml"
    yaml.write_text(yaml.read_text().replace("train: images/train", "train: ../images/val"))
    return folder


@pytest.mark.parametrize("write", [write_coco, write_json_lines, yolo_to_train_on, write_voc])
def test_files_of_the_evaluation_give_the_same_boxes(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    labelled = read_labels(write(tmp_path)).images
    found = {}
    for image in labelled:
        boxes = (LabelledBox(each.label, rounded(each.box_xyxy)) for each in image.objects or ())
        found[image.path.name] = tuple(boxes)
    assert found == TRUE_BOXES
    assert {each.size_wh for each in labelled} == {(100, 80)}


@pytest.mark.parametrize("name", ROWS)
def test_every_field_of_json_lines_is_read(name: str, tmp_path: Path) -> None:
    folder = write_rows(tmp_path, json.dumps({"image": "a.png", **ROWS[name]}), "")
    (labelled,) = read_labels(folder).images
    assert labelled == LabelledImage(folder / "a.png", (100, 80), **EXPECTED[name])  # type: ignore[arg-type]


def test_images_may_lie_in_another_folder(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "labels")
    images = (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(TuningError, match="give its folder with --images"):
        read_labels(folder)
    assert read_labels(folder, images).images[0].path == images / "a.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "labels.jsonl has no image that can be read"),
        (
            ['{"image": "a.png", "objects": [{"label": "cat"}]}'],
            r"line 1: expected .* KeyError\('box'\)",
        ),
        (["", "[]"], "line 2: expected an object"),
        (["{"], "line 1: expected an object"),
        (['{"image": "no.png", "caption": "a"}'], "no.png cannot be read"),
        (
            ['{"image": "labels.jsonl", "caption": "a"}'],
            r"labels\.jsonl cannot be read: .*JPEG, PNG, WEBP",
        ),
    ],
)
def test_a_malformed_dataset_is_refused_by_its_line(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TuningError, match=message):
        read_labels(write_rows(tmp_path, *lines))


@pytest.mark.parametrize("document", ["[]", "{", '{"images": [{"id": 1}]}'])
def test_what_is_not_coco_is_refused(document: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(document)
    with pytest.raises(TuningError, match=r"labels\.json is not COCO"):
        read_labels(tmp_path)


def test_a_folder_with_several_label_files_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=re.escape(f"{tmp_path} is a folder with 0 such files")):
        read_labels(tmp_path)
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(TuningError, match="a folder with 2 such files"):
        read_labels(tmp_path)


@pytest.mark.parametrize(
    "line", ["7 .5 .5 .1 .1", "0 .5 .5 .1", "0 .5 .5", "car .5 .5 .1 .1", "1e999 .5 .5 .1 nan"]
)
def test_a_line_that_is_not_yolos_is_named(line: str, tmp_path: Path) -> None:
    folder = yolo_to_train_on(tmp_path)
    with (folder / "labels" / "val" / "b.txt").open("a") as file:
        file.write(line)
    with pytest.raises(TuningError, match=r"b\.txt, line 2: expected a class of the yaml"):
        read_labels(folder)


def test_only_the_training_split_of_pascal_voc_is_read(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    assert [each.path.name for each in read_labels(folder).images] == ["b.png"]


@pytest.mark.parametrize("write", [write_coco, write_json_lines, yolo_to_train_on, write_voc])
def test_images_that_cannot_be_read_are_named_and_left_out(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = write(tmp_path)
    (damaged,) = folder.rglob("a.png")
    damaged.write_bytes(damaged.read_bytes()[:-20])  # its header is whole
    (missing,) = folder.rglob("c.png")
    missing.unlink()
    dataset = read_labels(folder)
    assert [each.path.name for each in dataset.images] == ["b.png"]
    # YOLO names classes, not images
    expected = [damaged] if write is yolo_to_train_on else [damaged, missing]
    for path, reason in zip(expected, dataset.left_out, strict=True):
        assert f"{path.name} cannot be read: " in reason


def test_images_without_any_label_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = yolo_to_train_on(tmp_path)
    monkeypatch.chdir(folder)
    assert any(each.objects for each in read_labels(Path("data.yaml")).images)
    shutil.rmtree(folder / "labels")
    with pytest.raises(TuningError, match="no labels found for 3 images: labels/"):
        read_labels(folder)
