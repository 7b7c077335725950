"""The same labels in every format are the same values; damaged ones are named and left out.

The label files in foreign/ were written once, by FiftyOne 1.22.1, labelme 6.3.1 and datasets 5.2.0,
about the objects of tests/support/evaluations.py. supervision writes here.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from diptych_client.datasets.dataset import Dataset
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import Folder, Problems, find_images
from diptych_client.datasets.long_runs import RunError
from tests.support.evaluations import (
    CLASSES,
    OBJECTS,
    SIZE,
    write_coco,
    write_images,
    write_json_lines,
    write_parquet,
    write_voc,
    write_yolo,
)

FOREIGN = Path(__file__).parent / "foreign"
Write = Callable[[Path], Path]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def write_lines(path: Path, rows: Iterable[object]) -> None:
    write_images(path.parent)
    path.write_text("\n".join(map(json.dumps, rows)))


def write_roboflow_yolo(folder: Path) -> Path:
    """Write the paths of data.yaml relative to a folder below it."""
    write_yolo(folder, "valid/images", "valid/labels")
    names = "train: ../train/images\nval: ../valid/images\nnames: [car, dog]\n"
    (folder / "data.yaml").write_text(names)
    return folder


def write_yolo_of_label_studio(folder: Path) -> Path:
    """Write the classes to classes.txt instead of a data.yaml."""
    write_yolo(folder)
    (folder / "data.yaml").rename(folder / "classes.txt").write_text("car\ndog\n")
    (folder / "notes.json").write_text("{}")
    return folder


def write_cvat(folder: Path) -> Path:
    write_images(folder / "images")
    rows = ""
    for number, (name, labelled) in enumerate(OBJECTS.items()):
        boxes = ""
        for label, (x1, y1, x2, y2) in labelled:
            boxes += f'<box label="{label}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
        rows += f'<image id="{number}" name="{name}" width="100" height="80">{boxes}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{rows}</annotations>")
    return folder


def write_label_studio(folder: Path) -> Path:
    write_images(folder / "images")
    tasks = []
    for name, labelled in OBJECTS.items():
        results = []
        for label, (x1, y1, x2, y2) in labelled:
            percent = {"x": x1, "y": y1 / 0.8, "width": x2 - x1, "height": (y2 - y1) / 0.8}
            value = {**percent, "rotation": 0, "rectanglelabels": [label]}
            size = {"original_width": SIZE.width, "original_height": SIZE.height}
            results.append({"type": "rectanglelabels", "value": value, **size})
        image = f"/data/upload/1/0123abcd-{name}"
        tasks.append({"data": {"image": image}, "annotations": [{"result": results}]})
        (folder / "images" / name).rename(folder / "images" / f"0123abcd-{name}")
    (folder / "project-1.json").write_text(json.dumps(tasks))
    return folder


@contextmanager
def changing(file: Path) -> Iterator[Any]:
    """Yield the JSON of a file, and write it back."""
    document = json.loads(file.read_text())
    yield document
    file.write_text(json.dumps(document))


def num_objects(dataset: Dataset) -> list[int]:
    return [len(labelled.objects or ()) for labelled in dataset.images]


def test_coco_has_captions(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = [{"id": number, "file_name": name} for number, name in enumerate(OBJECTS)]
    annotations = [{"image_id": 0, "caption": text} for text in ("one", "two")]
    document = {"images": images, "annotations": annotations}
    (tmp_path / "x.json").write_text(json.dumps(document))
    first, second, _ = read_dataset(tmp_path).images
    assert (first.captions, first.objects) == (("one", "two"), None)
    assert (second.captions, second.objects) == (None, None)
    damaged = document | {"categories": [{"id": 1}]}
    (tmp_path / "x.json").write_text(json.dumps(damaged))
    problems = Problems()
    read_dataset(tmp_path, problems=problems)
    assert "category 1: no key 'name'; category left out" in problems.lines[0]


def test_category_that_groups_others_is_no_class(tmp_path: Path) -> None:
    """Roboflow's category 0 has no objects; COCO's own `person` is in the category `person`."""
    file = write_coco(tmp_path) / "annotations.json"
    with changing(file) as document:
        for category in document["categories"]:
            category["supercategory"] = "things"
        document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        document["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    assert read_dataset(tmp_path).classes == (*CLASSES, "person")
    with changing(file) as document:
        document["annotations"][0]["category_id"] = 0
    assert read_dataset(tmp_path).classes == ("things", *CLASSES, "person")


def test_coco_triangle_is_a_polygon(tmp_path: Path) -> None:
    triangle = [[10, 10, 40, 10, 40, 30]]
    file = write_coco(tmp_path) / "annotations.json"
    edit(file, '"area": 1.0', f'"iscrowd": 1, "segmentation": {triangle}')
    (first, _) = read_dataset(tmp_path).images[0].objects or ()
    assert (first.segmentation, first.is_crowd) == (triangle, True)


@pytest.mark.parametrize("write", [write_coco, write_cvat, write_json_lines, write_voc])
def test_missing_image_is_named_and_left_out(write: Write, tmp_path: Path) -> None:
    (image,) = write(tmp_path).rglob("a.png")
    image.unlink()
    problems = Problems()
    dataset = read_dataset(tmp_path, problems=problems)
    assert [labelled.image.name for labelled in dataset.images] == ["b.png", "c.png"]
    assert dataset.ignored == {"missing image left out": 1}
    finding = f"there is no image 'a.png' in {image.parent}; missing image left out"
    assert problems.lines == [f"{tmp_path}: {finding}"]


def test_links_are_followed_once_and_other_entries_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    write_images(disk / "photos")
    for link, target in (("loop", "photos"), ("outside", "../data"), ("same", ".")):
        (disk / "photos" / link).symlink_to(disk / target)
    folder = tmp_path / "data"
    write_images(folder / "inside")
    (folder / "denied").mkdir()
    links = {"linked": disk / "photos", "again": disk / "photos", "up": tmp_path}
    links |= {"inner": folder / "inside", "ring.png": folder / "ring.png"}
    links |= {"z.png": Path("nowhere")}
    for name, path in links.items():
        (folder / name).symlink_to(path)
    os.mkfifo(folder / "pipe.png")
    scan = os.scandir

    def scan_allowed(place: str) -> Any:
        if Path(place).name == "denied":
            raise PermissionError(place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", scan_allowed)
    dataset = read_dataset(folder)
    names = [labelled.image.name for labelled in dataset.images]
    places = ("again", "again/same/photos", "inside")
    assert names == [f"{place}/{name}" for place in places for name in OBJECTS]
    assert dataset.ignored == {
        "broken link left out": 2,
        "circular link left out": 1,
        "special file left out": 1,
        "unreadable folder left out": 1,
    }


@pytest.mark.parametrize(("images", "labels"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("write", [write_coco, write_yolo, write_voc, write_json_lines])
def test_names_match_in_any_normal_form(
    images: Any, labels: Any, write: Write, tmp_path: Path
) -> None:
    folder = write(tmp_path / normalize(images, "größe"))
    for path in sorted(folder.rglob("a.*")):
        form = images if path.suffix == ".png" else labels
        path.rename(path.with_stem(normalize(form, "ä")))
    for path in folder.rglob("*.*"):
        if path.suffix in (".json", ".jsonl", ".xml"):
            path.write_text(path.read_text().replace("a.png", normalize(labels, "ä") + ".png"))
    dataset = read_dataset(folder)
    assert (dataset.labels, dataset.ignored) == ({"objects": 3}, {})
    assert all(labelled.image.size_bytes for labelled in dataset.images)


def test_yolo_labels_of_no_image_are_named(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    labels = folder / "labels" / "val"
    (labels / "a.txt").rename(labels / "a.TXT")
    (labels / "z.txt").write_text("0 .5 .5 .1 .1\n")
    (labels / "empty.Txt").touch()
    (folder / "images" / "val" / "c.png").write_bytes(b"")
    (folder / "images" / "train").mkdir()
    (folder / "labels" / "train").mkdir()
    (folder / "labels" / "train" / "y.txt").write_text("0 .5 .5 .1 .1\n")  # of another split
    problems = Problems()
    dataset = read_dataset(folder, problems=problems)
    assert num_objects(dataset) == [2, 1]
    assert dataset.ignored == {"empty image left out": 1, "label file left out": 2}
    assert problems.lines[1] == f"{labels / 'z.txt'}: it has no image; label file left out"


def test_yolo_notes_its_split_and_may_be_rounded(tmp_path: Path) -> None:
    edit(write_yolo(tmp_path) / "labels" / "val" / "b.txt", "0.1 ", "1.01 ")
    dataset = read_dataset(tmp_path)
    assert num_objects(dataset) == [2, 1, 0]
    assert dataset.note == "the split val is read; --split reads train"
    selected = read_dataset(tmp_path, split="val")
    assert (selected.note, selected.classes) == ("", CLASSES)


def test_yolo_lists_and_paths_are_in_its_folder(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    text = "path: images\nval: [val, ../list.txt]\nnames: [car, dog]\n"
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "list.txt").write_text(f"./images/val/b.png\n{tmp_path}/images/val/a.png\n")
    dataset = read_dataset(tmp_path)
    names = [f"images/val/{name}.png" for name in "abcba"]
    assert [labelled.image.name for labelled in dataset.images] == names
    assert num_objects(dataset) == [2, 1, 0, 1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "train: /content/datasets/x/images/train\nval: /content/datasets/x/images/val\n",
        "path: /content/datasets/x\nval: /content/datasets/x/images/val\n",
        "val: [/content/datasets/x/images/val]\n",
        "val: C:\\Users\\ann\\images\\val\n",
        "val: /content/datasets/x/val.txt\n",
    ],
)
def test_yolo_paths_of_another_machine(text: str, tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    lines = [f"/content/datasets/x/images/val/{name}\n" for name in OBJECTS]
    (folder / "val.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"{text}names: [car, dog]\n")
    assert_objects(read_dataset(folder))
    (folder / "data.yaml").write_text("val: /content/datasets/x/images/test\nnames: [car, dog]\n")
    with pytest.raises(RunError, match="images/test' leads outside this folder"):
        read_dataset(folder)


def test_yolo_labels_stay_in_a_folder_images(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images" / "data")
    flat = tmp_path / "images" / "flat"
    (tmp_path / "images" / "data" / "images" / "val").rename(flat)
    (tmp_path / "labels" / "flat").mkdir(parents=True)
    (tmp_path / "labels" / "flat" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (flat / "b.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    (flat / "data.yaml").write_text("names: [a, b]\nval: .\n")
    assert num_objects(read_dataset(flat)) == [0, 1, 0]


def test_yolo_classes_without_names_are_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    shutil.copytree(FOREIGN / "fiftyone-yolo4" / "data", tmp_path / "data", dirs_exist_ok=True)
    problems = Problems()
    assert read_dataset(tmp_path, problems=problems).classes == ("0", "1")
    (line,) = problems.lines
    assert "none of classes.txt, obj.names" in line


def test_yolo_outline_and_upright_box(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "val" / "c.txt").write_text("1 0.1 0.25 0.5 0.25 0.5 0.75\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "images" / "val" / "b.png", exif=exif)
    _, upright, outlined = read_dataset(tmp_path).images
    (true,) = outlined.objects or ()
    assert true.box_xyxy == pytest.approx((10, 20, 50, 60))
    assert true.segmentation == [pytest.approx([10, 20, 50, 20, 50, 60])]
    (true,) = upright.objects or ()
    assert true.box_xyxy == pytest.approx((0, 0, 0.2 * 80, 0.25 * 100))


def test_label_studio_names_before_upload(tmp_path: Path) -> None:
    folder = write_label_studio(tmp_path)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name.removeprefix("0123abcd-")))
    names = [labelled.image.name for labelled in read_dataset(folder).images]
    assert names == [f"images/{name}" for name in OBJECTS]
    (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"no image is left: .*: give its folder with --images"):
        read_dataset(folder)


def test_label_studio_box_turns_around_its_corner(tmp_path: Path) -> None:
    edit(write_label_studio(tmp_path) / "project-1.json", '"rotation": 0', '"rotation": 90')
    first, _ = read_dataset(tmp_path).images[0].objects or ()
    assert first.box_xyxy == pytest.approx((-10, 10, 10, 40))  # 30 x 20 around (10, 10)


def test_label_studio_counts_the_last_annotation(tmp_path: Path) -> None:
    with changing(write_label_studio(tmp_path) / "project-1.json") as tasks:
        first = tasks[0]["annotations"]
        first.insert(0, {"result": first[0]["result"][:1]})
        first.append({"was_cancelled": True, "result": []})
        tasks[1]["annotations"] = first[-1:]
    first_image, second, third = read_dataset(tmp_path).images
    assert len(first_image.objects or ()) == 2
    assert (second.objects, third.objects) == (None, ())


def test_cvat_turned_box_is_its_outline(tmp_path: Path) -> None:
    write_cvat(tmp_path)
    edit(tmp_path / "annotations.xml", "<box", '<box rotation="90"')
    polygon = '<polygon label="dog" points="0,0;30,0;30,20"/></image>'
    edit(tmp_path / "annotations.xml", "</image>", polygon)
    first, _, last = read_dataset(tmp_path).images[0].objects or ()
    assert first.box_xyxy == pytest.approx((15, 5, 35, 35))  # 30 x 20 around (25, 20)
    assert first.segmentation[0][:2] == pytest.approx([35, 5])  # clockwise
    assert (last.box_xyxy, last.segmentation) == ((0, 0, 30, 20), [[0, 0, 30, 0, 30, 20]])


def test_voc_difficult_objects_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path)
    edit(tmp_path / "Annotations" / "b.xml", "</name>", "</name><difficult>1</difficult>")
    (true,) = read_dataset(tmp_path).images[1].objects or ()
    assert true.is_crowd
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b  1\na -1\n")
    names = [labelled.image.name for labelled in read_dataset(tmp_path, split="val").images]
    assert names == ["b.png", "a.png"]
    monkeypatch.chdir(tmp_path.parent)
    assert len(read_dataset(Path(tmp_path.name), split="val").images) == 2
    (tmp_path / "class_ids.json").write_text("{}")  # Annotations/ decides
    assert len(read_dataset(tmp_path).images) == len(OBJECTS)
    flat = write_voc(tmp_path / "flat", "train", "train")
    for file in flat.rglob("*.xml"):
        text = '<?xml version="1.0" encoding="utf-16"?>' + file.read_text()
        file.write_bytes(text.encode("utf-16"))
    assert len(read_dataset(flat, split="train").images) == len(OBJECTS)
    with pytest.raises(RunError, match="has no label file of the split val"):
        read_dataset(flat, split="val")


def test_json_lines_have_every_kind_of_label(tmp_path: Path) -> None:
    box = [0, 0, 20, 20]
    rows = [
        {"image": "a.png", "captions": ["one", "two"], "text": "EXIT", "region": [0, 0, 5, 5]},
        {"image": "a.png", "question": "how many?", "answers": [{"answer": "2"}, "two"]},
        {"image": "b.png", "phrases": [{"phrase": "left dog", "box": box}, {"phrase": "sky"}]},
    ]
    write_lines(tmp_path / "x.jsonl", rows)
    first, second, third = read_dataset(tmp_path / "x.jsonl").images
    assert (first.captions, first.text, first.region) == (("one", "two"), "EXIT", (0, 0, 5, 5))
    assert second.questions[0].answers == ("2", "two")
    phrases = [(phrase.label, phrase.box_xyxy) for phrase in third.phrases]
    assert phrases == [("left dog", tuple(box)), ("sky", None)]


def test_image_folder_has_objects_and_captions(tmp_path: Path) -> None:
    objects = {"bbox": [[10.0, 20.0, 30.0, 40.0]], "categories": ["car"]}
    rows = [{"file_name": "a.png", "objects": objects}, {"file_name": "b.png", "text": "two cats"}]
    for split in ("train", "test"):
        write_lines(tmp_path / split / "metadata.jsonl", rows)
    several = r"several label files \(test/metadata.jsonl, train/metadata.jsonl\)"
    with pytest.raises(RunError, match=several):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, split="train")
    first, second = dataset.images
    (true,) = first.objects or ()
    assert (true.label, true.box_xyxy) == ("car", (10, 20, 40, 60))
    assert (second.captions, second.objects) == (("two cats",), None)
    assert dataset.store.read(second.image) == (tmp_path / "train" / "b.png").read_bytes()


def test_one_split_of_several_is_read(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        file = write_parquet(tmp_path / split) / "val-00000-of-00001.parquet"
        file.rename(tmp_path / split / "0000.parquet")
    with pytest.raises(RunError, match=r"several splits: choose one with --split \(train, val\)"):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, split="train")
    assert dataset.images[0].image.name == "train/0000.parquet#0"
    assert len(dataset.images) == len(OBJECTS)


def test_images_may_be_in_another_folder(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_images(pictures)
    for write in (write_coco, write_json_lines):
        assert read_dataset(write(tmp_path / write.__name__), pictures).store == Folder(pictures)
    with pytest.raises(RunError, match="--images is not for YOLO, Parquet and Arrow"):
        read_dataset(write_yolo(tmp_path / "yolo"), pictures)


def test_cached_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    (saved,) = shutil.copytree(FOREIGN / "datasets-disk", tmp_path / "arrow").glob("*.arrow")
    saved.with_name("cache-0123456789abcdef.arrow").write_bytes(saved.read_bytes())
    write_voc(tmp_path / "archive" / "VOCdevkit" / "VOC2012")
    (tmp_path / "archive" / "VOCdevkit" / ".hidden").mkdir()
    (tmp_path / "archive" / "__MACOSX").mkdir()
    for name in ("arrow", "archive"):
        assert len(read_dataset(tmp_path / name).images) == len(OBJECTS)


def test_images_without_labels_say_what_was_looked_for(tmp_path: Path) -> None:
    write_images(tmp_path)
    problems = Problems()
    problems.add("http://a/b.png", "404", "image left out")
    dataset = read_dataset(tmp_path, problems=problems)
    assert dataset.note.startswith("no labels found: looked for YOLO, Pascal VOC")
    assert [labelled.image.name for labelled in dataset.images] == sorted(OBJECTS)
    assert all(labelled.objects is None for labelled in dataset.images)
    (tmp_path / "one").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "one" / "a.png")
    assert len(read_dataset(tmp_path / "one").images) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="contains neither labels nor an image; looked for YOLO"):
        read_dataset(tmp_path / "empty")


FILES: dict[Write, str] = {
    write_coco: "annotations.json",
    write_cvat: "annotations.xml",
    write_json_lines: "labels.jsonl",
    write_label_studio: "project-1.json",
    write_voc: "Annotations/b.xml",
    write_yolo: "labels/val/b.txt",
}
YOLO_LINE = "1 0.1 0.125 0.2 0.25"


@pytest.mark.parametrize(
    ("write", "old", "new", "line", "num_left"),
    [
        (write_coco, '_id": 7', '_id": 99', "annotation id 1: category_id 99 is not in `categ", 2),
        (write_coco, "10.0, 30.0", "10.0, -30.0", "[10.0, 10.0, -20.0, 30.0] has no area", 2),
        (write_coco, "10.0, 30.0", "NaN, 30.0", " is not finite; annotation left out", 2),
        (write_coco, '"image_id": 1', '"image_id": 8', "image_id 8 is not in `images`", 2),
        (write_coco, '"area": 1.0', '"segmentation": [[1, 2]]', "3 points, got 2 numbers", 3),
        (write_yolo, "0.125", "x", "line 1: could not convert string to float: 'x'", 2),
        (write_yolo, YOLO_LINE, f"9{YOLO_LINE[1:]}", "class 9 is not one of the 2 classes", 2),
        (write_yolo, " 0.25", " 0", " has no area; object left out", 2),
        (write_yolo, "0.1 ", "1.02 ", "must be parts of the image, 0 to 1", 2),
        (write_yolo, YOLO_LINE, "1 0.5 0.5", "expected a box or an outline after the class", 2),
        (write_voc, "<xmax>20.0<", "<xmax>-3<", "object 1: the box [0.0, 0.0, -3.0, 20.0]", 2),
        (write_voc, "</annotation>", "", "b.xml: is not readable as XML", 2),
        (write_cvat, 'xbr="40.0"', 'xbr="?"', "image 1 (a.png), object 1: could not", 2),
        (write_cvat, "<box", "<cuboid", "a cuboid is neither a box nor a polygon", 2),
        (write_label_studio, '"x": 10.0', '"x": "?"', "image 1, object 1: could not convert", 2),
        (write_json_lines, "[10.0, 10.0, 40.0, 30.0]", "[4]", "line 1: expected an", 1),
    ],
)
def test_damaged_label_is_named_and_left_out(
    write: Write, old: str, new: str, line: str, num_left: int, tmp_path: Path
) -> None:
    edit(write(tmp_path) / FILES[write], old, new)
    problems = Problems()
    dataset = read_dataset(tmp_path, problems=problems)
    assert sum(len(labelled.objects or ()) for labelled in dataset.images) == num_left
    (problem,) = problems.lines
    assert line in problem
    assert Path(FILES[write]).name in problem
    assert problems.counts.total() == 1
    assert "\n" not in problem
    with pytest.raises(RunError, match=re.escape(line.partition(";")[0])):
        read_dataset(tmp_path, problems=Problems(is_strict=True))


BOX = {"bbox": [0, 0, 9, 9]}
A_AND_B: dict[str, list[dict[str, Any]]] = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, **BOX},
        {"id": 2, "image_id": 2, "category_id": 2, **BOX},
    ],
}
TURNED = {"width": 80, "height": 100}
BEYOND = {"bbox": [100, 0, 9, 9]}
PLACE = "annotation id 1: the box [100.0, 0.0, 109.0, 9.0]"
CAR_AND_DOG = {"a.png": ["car"], "b.png": ["dog"]}
NONE: dict[str, list[str]] = {"a.png": [], "b.png": []}
DOG = {"a.png": [], "b.png": ["dog"]}
B = {"b.png": ["dog"]}


@pytest.mark.parametrize(
    ("kind", "number", "change", "finding", "num_left_out", "labels"),
    [
        ("images", 1, {"id": 1}, "image 2: its id 1 is that of 'a.png', too; image", (2, 2), {}),
        ("categories", 1, {"id": 1}, "'car': its id 1 is repeated; category", (2, 2), NONE),
        ("categories", 0, {"name": None}, "1: the label is missing; category", (1, 1), DOG),
        (
            "images",
            0,
            TURNED,
            "its size is 80 x 100, but that of its file 100 x 80; image",
            (1, 1),
            B,
        ),
        (
            "annotations",
            0,
            BEYOND,
            f"{PLACE} is outside the image of 100 x 80; annotation",
            (1,),
            DOG,
        ),
        ("annotations", 0, {"bbox": [95, 75, 9, 9]}, "", (), CAR_AND_DOG),
        ("images", 0, {"width": 100, "height": 80}, "", (), CAR_AND_DOG),
        ("images", 0, {"width": 0, "height": None}, "", (), CAR_AND_DOG),
    ],
)
def test_coco_that_contradicts_itself_is_named(
    kind: str,
    number: int,
    change: dict[str, Any],
    finding: str,
    num_left_out: tuple[int, ...],
    labels: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    write_images(tmp_path)
    document = deepcopy(A_AND_B)
    document[kind][number] |= change
    document["images"].append({"id": 3, "file_name": "c.png"})
    (tmp_path / "x.json").write_text(json.dumps(document))
    problems = Problems()
    dataset = read_dataset(tmp_path / "x.json", problems=problems)
    found = {}
    for labelled in dataset.images[:-1]:
        found[labelled.image.name] = [true.label for true in labelled.objects or ()]
    assert (found, tuple(dataset.ignored.values())) == (labels, num_left_out)
    findings = [line for line in problems.lines if f"{finding} left out" in line]
    assert bool(findings) == bool(finding)


def test_entry_of_coco_may_be_repeated(tmp_path: Path) -> None:
    write_images(tmp_path)
    document = deepcopy(A_AND_B)
    document["images"] += document["images"]
    (tmp_path / "x.json").write_text(json.dumps(document))
    dataset = read_dataset(tmp_path / "x.json")
    assert (dataset.labels, dataset.ignored) == ({"objects": 2}, {"repeated image left out": 2})


ONE_PIXEL = 1.01  # FiftyOne's VOC counts from 0
TOOLS = {
    "datasets-disk": ("Hugging Face", None, 1e-4),
    "datasets-parquet": ("Hugging Face", None, 1e-4),
    "fiftyone": ("FiftyOne", "data", 1e-4),
    "fiftyone-coco": ("COCO", "data", 1e-4),
    "fiftyone-cvat": ("CVAT", "data", 1e-4),
    "fiftyone-voc": ("Pascal VOC", "data", ONE_PIXEL),
    "fiftyone-yolo4": ("YOLO", "data", 1e-4),
    "fiftyone-yolo5": ("YOLO", "images/val", 1e-4),
    "labelme": ("LabelMe", ".", 1e-4),
}


def assert_objects(dataset: Dataset, tolerance: float = 1e-4) -> None:
    assert dataset.classes == CLASSES
    assert dataset.labels == {"objects": 3}
    for index, (labelled, expected) in enumerate(
        zip(dataset.images, OBJECTS.values(), strict=True)
    ):
        objects = labelled.objects or ()
        assert [true.label for true in objects] == [label for label, _ in expected]
        boxes = [pytest.approx(box, abs=tolerance) for _, box in expected]
        assert [true.box_xyxy for true in objects] == boxes
        with Image.open(io.BytesIO(dataset.store.read(labelled.image))) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (index * 40, 90, 120)


LAYOUTS = (
    write_cvat,
    write_json_lines,
    write_label_studio,
    write_parquet,
    write_roboflow_yolo,
    write_voc,
    write_yolo_of_label_studio,
)


@pytest.mark.parametrize("write", LAYOUTS)
def test_other_layouts_are_read_whole(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_objects(read_dataset(write(tmp_path)))


@pytest.mark.parametrize("tool", TOOLS)
def test_files_of_a_tool_are_read_whole(tool: str, tmp_path: Path) -> None:
    name, images, tolerance = TOOLS[tool]
    folder = shutil.copytree(FOREIGN / tool, tmp_path / "dataset")
    if images is not None:
        write_images(folder / images)
    problems = Problems()
    dataset = read_dataset(folder, problems=problems)
    assert_objects(dataset, tolerance)
    assert (dataset.format, dataset.ignored) == (name, {})


def test_createml_of_supervision_is_read_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "source")
    annotations = {}
    for name, labelled in OBJECTS.items():
        boxes = np.array([box for _, box in labelled], dtype=float).reshape(-1, 4)
        ids = np.array([CLASSES.index(label) for label, _ in labelled], dtype=int)
        path = str(tmp_path / "source" / name)
        annotations[path] = sv.Detections(xyxy=boxes, class_id=ids)
    dataset: Any = sv.DetectionDataset(list(CLASSES), list(annotations), annotations)
    folder = tmp_path / "dataset"
    dataset.as_createml(str(folder), str(folder / "_annotations.createml.json"))
    assert_objects(read_dataset(folder))


def read_table(folder: Path, name: str, text: str, **options: Any) -> tuple[Dataset, Problems]:
    write_images(folder)
    (folder / name).write_bytes(text.encode("utf-8-sig"))
    problems = Problems()
    return read_dataset(folder, problems=problems, **options), problems


BOX_ROWS = """filename,width,height,class,xmin,ymin,xmax,ymax
a.png,100,80,car,10,10,40,30
b.png,100,80,dog,0,0,20,20
a.png,100,80,dog,50,20,90,60
c.png,100,80,,,,,
"""


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "columns", ["xmin,ymin,xmax,ymax", "X1,Y1,X2,Y2", "x_min,y_min,x_max,y_max"]
)
def test_csv_has_a_box_in_each_row(columns: str, delimiter: str, tmp_path: Path) -> None:
    text = BOX_ROWS.replace("xmin,ymin,xmax,ymax", columns).replace(",", delimiter)
    line_end = "\r" if delimiter == ";" else "\n"  # some Macs write it
    dataset, problems = read_table(tmp_path, "labels.csv", text.replace("\n", line_end))
    assert_objects(dataset)
    assert not problems.counts


def test_csv_has_texts_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    text = 'image,question,answer,mood\na.png,"how many, in all?",2,x\na.png,which?,dog,\n'
    dataset, problems = read_table(tmp_path, "qa.csv", text)
    (labelled,) = dataset.images
    pairs = [(question.question, question.answers) for question in labelled.questions]
    assert pairs == [("how many, in all?", ("2",)), ("which?", ("dog",))]
    assert problems.counts == {"field mood not read": 1}
    damaged = BOX_ROWS.replace("car,10", ",10").replace("0,0,20,20", "0,0,x,20") + "a.png,1\n"
    (tmp_path / "qa.csv").write_text("photo,tag\na.png,dog\n")
    dataset = read_dataset(tmp_path)
    assert dataset.note.startswith("1 files not understood, qa.csv begins with 'photo,tag\\na.png")
    (tmp_path / "qa.csv").unlink()
    with pytest.raises(RunError, match="or name, got kind, xmin, ymin, xmax, ymax"):
        read_table(tmp_path, "labels.csv", "filename,kind,xmin,ymin,xmax,ymax\na.png,x,0,0,9,9\n")
    dataset, problems = read_table(tmp_path, "labels.csv", damaged)
    assert problems.counts == {"row left out": 3}
    assert dataset.labels == {"objects": 1}


def test_captions_of_an_image_folder_in_csv(tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN / "datasets-csv", tmp_path / "dataset")
    write_images(folder)
    captions = [labelled.captions for labelled in read_dataset(folder).images]
    assert captions == [("=two cats",), ('a, "dog"\nnew',)]


REGION = "<loc_100><loc_125><loc_400><loc_375>"
PREFIXES = [
    ("detect car ; dog", "<loc0128><loc0102><loc0384><loc0409> car ; <loc0256>", 1),
    ("<OD>", "car<loc_100><loc_125><loc_400><loc_375>dog<loc_1><loc_2><loc_3>", 1),
    pytest.param("<OD>", f"car{REGION}dog<loc_1>{'x' * 1_000_000}", 1, id="long"),
    ("detect car", "", 0),
]


@pytest.mark.parametrize(("prefix", "suffix", "number"), PREFIXES)
def test_prefix_and_suffix_have_boxes(
    prefix: str, suffix: str, number: int, tmp_path: Path
) -> None:
    row = json.dumps({"image": "a.png", "prefix": prefix, "suffix": suffix})
    dataset, problems = read_table(tmp_path, "_annotations.train.jsonl", row, split="train")
    objects = dataset.images[0].objects
    assert objects is not None
    assert [true.label for true in objects] == ["car"] * number
    for true in objects:
        assert true.box_xyxy == pytest.approx(OBJECTS["a.png"][0][1], abs=0.1)
    assert problems.counts == ({"object left out": 1} if number else {})


TEXTS = [
    ("<MORE_DETAILED_CAPTION>", "two cats", {"captions": 1}),
    (f"<REGION_TO_DESCRIPTION>{REGION}", f"a car{REGION}", {"texts": 1}),
    ("how many?", "2", {"questions": 1}),
    ("segment car", "<loc0128><loc0102><loc0384><loc0409>" + "<seg001>" * 16, {"phrases": 1}),
    ("<CAPTION_TO_PHRASE_GROUNDING>a car", f"car{REGION}", {"phrases": 1}),
]


@pytest.mark.parametrize(("prefix", "suffix", "labels"), TEXTS)
def test_prefix_and_suffix_have_every_kind(
    prefix: str, suffix: str, labels: dict[str, int], tmp_path: Path
) -> None:
    row = json.dumps({"image": "a.png", "prefix": prefix, "suffix": suffix})
    dataset, problems = read_table(tmp_path, "x.jsonl", row)
    assert dataset.labels == labels
    assert problems.counts == ({"mask left out": 1} if "<seg" in suffix else {})
    (labelled,) = dataset.images
    for question in labelled.questions:
        assert question.question == "how many?"
    if labelled.region is not None:
        assert labelled.text == "a car"
        assert labelled.region == pytest.approx((10.05, 10.04, 40.05, 30.04))


def test_shapes_of_labelme(tmp_path: Path) -> None:
    shapes = [
        {"label": "p", "points": [[1, 1], [9, 1], [9, 5]], "shape_type": "polygon"},
        {"label": "c", "points": [[50, 40], [53, 44]], "shape_type": "circle"},
        {"label": "m", "points": [[2, 3], [8, 9]], "shape_type": "mask", "mask": "iVBOR"},
        {"label": "l", "points": [[1, 1], [9, 1]], "shape_type": "line"},
        {"label": None, "points": [[2, 3], [8, 9]], "shape_type": "rectangle"},
        {"label": "r", "points": [[2, 80], [8, 90]], "shape_type": "rectangle"},
    ]
    write_images(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    document = {"shapes": shapes, "imagePath": "..\\images\\a.png"}
    (tmp_path / "labels" / "a.json").write_text(json.dumps(document))
    problems = Problems()
    for images in (None, tmp_path / "images"):
        (labelled,) = read_dataset(tmp_path, images, problems=problems).images
    boxes = [true.box_xyxy for true in labelled.objects or ()]
    assert boxes == [(1, 1, 9, 5), (45, 35, 55, 45), (2, 3, 8, 9)]
    findings = ["a line has no box", "the label is missing", "is outside the image of 100 x 80"]
    for finding, line in zip(findings * 2, problems.lines, strict=True):
        assert finding in line
    assert problems.counts == {"object left out": 6}
    swapped = {**document, "imageWidth": 80, "imageHeight": 100}
    (tmp_path / "labels" / "a.json").write_text(json.dumps(swapped))
    with pytest.raises(RunError, match="its size is 80 x 100, but that of its file 100 x 80"):
        read_dataset(tmp_path)


def test_lvis_names_images_by_url(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    with changing(folder / "annotations.json") as document:
        for image in document["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/val/{image.pop('file_name')}"
            image["neg_category_ids"] = []
    dataset = read_dataset(folder)
    assert_objects(dataset)
    assert dataset.note.startswith("LVIS labels some classes")


@pytest.mark.parametrize("prefix", ["C:\\Users\\ann\\images\\", "/home/ann/images/", "images\\"])
def test_paths_of_another_machine(prefix: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    with changing(folder / "annotations.json") as document:
        for image in document["images"]:
            image["file_name"] = prefix + image["file_name"]
    assert_objects(read_dataset(folder))
    if prefix != "images\\":
        assert_objects(read_dataset(folder, folder / "images"))
        with changing(folder / "annotations.json") as document:
            document["images"][1]["file_name"] = "/elsewhere/a.png"
        with pytest.raises(RunError, match=r"elsewhere/a\.png' would both be"):
            read_dataset(folder, folder / "images")


def test_yolo_of_windows(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    text = "path: C:\\data\ntrain: images\\train\nval: images\\val\nnames: [car, dog]\n"
    (folder / "data.yaml").rename(folder / "shapes.yaml").write_bytes(text.encode("utf-8-sig"))
    (folder / "hyper.yaml").write_text("lr0: 0.01\n")
    for file in (folder / "labels" / "val").iterdir():
        file.write_bytes(file.read_text().replace("\n", " 0.75\r\n").encode("utf-8-sig"))
    problems = Problems()
    for split in ("valid", None):
        dataset = read_dataset(folder, split=split, problems=problems)
        assert_objects(dataset)
    assert problems.counts == {"confidence of an object not read": 6}
    with pytest.raises(RunError, match="has no split test; its splits: val, train"):
        read_dataset(folder, split="test")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.yaml").write_text("names: [a]")
    with pytest.raises(RunError, match="has no split val or valid or validation or test or train"):
        read_dataset(tmp_path / "x" / "x.yaml")


@pytest.mark.parametrize(
    ("split", "words"), [("val", "valid"), ("valid", "val2017"), ("VAL", "dev")]
)
def test_split_is_a_word_of_the_path(split: str, words: str, tmp_path: Path) -> None:
    for name in (words, "interval"):
        folder = write_coco(tmp_path / name)
        (folder / "annotations.json").rename(folder / "_annotations.coco.json")
    dataset = read_dataset(tmp_path, split=split)
    assert (dataset.split, dataset.splits) == (split, ("val",))
    assert dataset.store.read(dataset.images[0].image)
    with pytest.raises(RunError, match="no label file of the split train; its splits: val"):
        read_dataset(tmp_path, split="train")
    with pytest.raises(RunError, match="is one file: omit --split"):
        read_dataset(tmp_path / words / "_annotations.coco.json", split=split)


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    for name in ("._a.png", ".b.json", "x.cr2", "y.CR2", "scan", "z.docx"):
        (folder / "images" / name).write_bytes(b"1")
    (folder / "._annotations.json").write_bytes(b"\0")
    (folder / "images" / "c.png").write_bytes(b"")
    problems = Problems(is_strict=True)
    dataset = read_dataset(folder, problems=problems)
    assert [labelled.image.name for labelled in dataset.images] == ["a.png", "b.png"]
    counts = {".cr2 file left out": 2, ".docx file left out": 1}
    counts |= {"empty image left out": 1, "unsuffixed file left out": 1}
    assert dataset.ignored == counts
    assert len(find_images(folder)) == 2
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(b"")
    with pytest.raises(RunError, match="no image is left"):
        read_dataset(folder)
    for number in range(100):
        problems.count(f"field {number} not read")
    assert len(problems.counts) == 31
    assert sum(problems.counts.values()) == 105


def test_labels_of_other_fields_are_named(tmp_path: Path) -> None:
    dataset, _ = read_table(tmp_path, "x.jsonl", '{"image": "a.png", "bboxes": [[1, 2, 3, 4]]}')
    assert dataset.labels == {}
    assert dataset.ignored == {"field bboxes not read": 1, "image without labels": 2}
    assert dataset.note == "no labels were understood: 1 x field bboxes not read"


def test_ground_truth_of_fiftyone_is_read(tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN / "fiftyone", tmp_path / "dataset")
    write_images(folder / "data")
    with changing(folder / "samples.json") as document:
        for index, sample in enumerate(document["samples"]):
            document["samples"][index] = {"guess": {"detections": []}} | sample
    dataset = read_dataset(folder)
    assert_objects(dataset)
    assert dataset.ignored == {"field guess not read": 3}
    with changing(folder / "samples.json") as document:
        document["samples"][1]["ground_truth"]["detections"][0]["iscrowd"] = 1
    (true,) = read_dataset(folder).images[1].objects or ()
    assert true.is_crowd
