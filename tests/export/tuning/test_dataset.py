import json
import shutil
from collections.abc import Callable
from itertools import starmap
from pathlib import Path

import pytest

from diptych_client.matching import LabelledBox
from export.errors import ExportError
from export.tuning import examples
from export.tuning.examples import Dataset, LabelledImage
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


def read_labels(path: Path, images: Path | None = None) -> Dataset:
    return examples.read_labels(path, path.parent / "work", images)


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
    with pytest.raises(ExportError, match="give its folder with --images"):
        read_labels(folder)
    assert read_labels(folder, images).images[0].path == images / "a.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"image": "a.png", "objects": [{"label": "cat"}]}'],
            r"line 1: expected an object .* no key box; line left out",
        ),
        (["{"], "line 1: expected an object"),
        (['{"image": "no.png", "caption": "a"}'], r"no\.png: it cannot be read: "),
        (
            ['{"image": "labels.jsonl", "caption": "a"}'],
            r"labels\.jsonl: it cannot be read: .*JPEG, PNG, WEBP",
        ),
        (['{"image": "a.png"}', '{"image": "b.png"}'], "no labels found for 2 images"),
    ],
)
def test_a_dataset_without_one_good_label_is_refused_by_its_first_problem(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        read_labels(write_rows(tmp_path, *lines))


def test_a_folder_without_labels_names_what_was_looked_for(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    with pytest.raises(ExportError, match=r"no labels found: looked for data\.yaml or labels/"):
        read_labels(tmp_path / "photos")


def test_a_damaged_label_is_named_and_left_out(tmp_path: Path) -> None:
    folder = yolo_to_train_on(tmp_path / "data")
    with (folder / "labels" / "val" / "b.txt").open("a") as file:
        file.write("7 .5 .5 .1 .1")
    found = read_labels(folder)
    assert len(found.images) == len(OBJECTS)
    (line,) = found.problems.lines
    assert "b.txt, line 2: class 7 is not one of the 2 classes; object left out" in line


def test_only_the_training_split_of_an_archive_is_read(tmp_path: Path) -> None:
    """As Roboflow exports COCO."""
    for split, name in (("train", "a.png"), ("valid", "b.png")):
        write_images(tmp_path / "data" / split)
        rows = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "cat"}]}
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
        document = json.dumps(rows | {"annotations": [box]})
        (tmp_path / "data" / split / "_annotations.coco.json").write_text(document)
    archive = shutil.make_archive(str(tmp_path / "exported"), "zip", tmp_path / "data")
    (image,) = read_labels(Path(archive)).images
    assert (image.path.name, image.objects) == ("a.png", (LabelledBox("cat", (1, 2, 31, 42)),))


def test_a_yaml_without_a_training_split_is_refused(tmp_path: Path) -> None:
    folder = yolo_to_train_on(tmp_path / "data")
    yaml = folder / "data.yaml"
    yaml.write_text(yaml.read_text().replace("train:", "test:"))
    with pytest.raises(ExportError, match="has no split train"):
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
    found = read_labels(folder)
    assert [each.path.name for each in found.images] == ["b.png"]
    assert found.problems.counts["image left out"] == (1 if write is yolo_to_train_on else 2)
    assert "a.png: it " in found.problems.lines[0]


def test_images_without_any_label_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = yolo_to_train_on(tmp_path)
    monkeypatch.chdir(folder)
    assert any(each.objects for each in read_labels(Path("data.yaml")).images)
    shutil.rmtree(folder / "labels")
    with pytest.raises(ExportError, match="no labels found for 3 images"):
        read_labels(folder)
