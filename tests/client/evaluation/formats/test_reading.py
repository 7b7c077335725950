"""The same labels in every format are the same values; damaged ones are named and left out."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.inputs import Folder, ImageFile, Problems
from diptych_client.long_runs import RunError
from tests.support.evaluations import (
    CLASSES,
    OBJECTS,
    write_coco,
    write_cvat,
    write_images,
    write_json_lines,
    write_label_studio,
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
    document = json.loads(file.read_text())
    for category in document["categories"]:
        category["supercategory"] = "things"
    document["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    document["categories"].append({"id": 1, "name": "person", "supercategory": "person"})
    file.write_text(json.dumps(document))
    assert read_dataset(tmp_path).classes == (*CLASSES, "person")
    document["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(document))
    assert read_dataset(tmp_path).classes == ("things", *CLASSES, "person")


def test_coco_triangle_is_a_polygon(tmp_path: Path) -> None:
    triangle = [[10, 10, 40, 10, 40, 30]]
    file = write_coco(tmp_path) / "annotations.json"
    edit(file, '"area": 1.0', f'"iscrowd": 1, "segmentation": {triangle}')
    (first, _) = read_dataset(tmp_path).images[0].objects or ()
    assert (first.segmentation, first.is_crowd) == (triangle, True)


def test_coco_image_may_be_missing(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    (folder / "images" / "a.png").unlink()
    missing, *others = [labelled.image for labelled in read_dataset(folder).images]
    assert missing == ImageFile("a.png", 0, 0)
    assert all(image.size_bytes for image in others)


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
    file = write_label_studio(tmp_path) / "project-1.json"
    tasks = json.loads(file.read_text())
    first = tasks[0]["annotations"]
    first.insert(0, {"result": first[0]["result"][:1]})
    first.append({"was_cancelled": True, "result": []})
    tasks[1]["annotations"] = first[-1:]
    file.write_text(json.dumps(tasks))
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


def test_row_with_an_empty_image_fails_alone(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": [b""]}), tmp_path / "x.parquet")
    dataset = read_dataset(tmp_path)
    assert dataset.store.read(dataset.images[0].image) == b""  # the service refuses it


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


def test_files_beside_images_without_labels_are_counted(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.docx").write_text("notes")
    (tmp_path / "._a.jpg").write_text("of a Mac")
    counts = {"empty image left out": 1, ".docx file left out": 1}
    assert read_dataset(tmp_path).ignored == counts


NO_IMAGE = json.dumps({"images": [{"id": 1, "file_name": "z.png"}]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[]", "it has no list `images`"),
        ("x.json", NO_IMAGE, "give its folder with --images"),
        ("x.json", "", "x.json is not readable as JSON: Expecting value"),
        ("x.jsonl", '{"image": "a.png"}\n{"text": 1}\n', "line 2: expected an object with `image`"),
        ("x.yaml", "a: 1", "it has no `names`"),
        ("x.yaml", "names: [a]", "has no split val or valid or validation or test or train"),
        ("x.xml", "<a/>", "expected a file of YOLO, Pascal VOC"),
        ("x.txt", "", "expected a file of"),
    ],
)
def test_error_names_what_is_wrong(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=message):
        read_dataset(tmp_path / name, problems=Problems(is_strict=True))


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
