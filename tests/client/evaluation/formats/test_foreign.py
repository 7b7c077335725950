"""Files of other tools are read: every box, or it is counted as ignored.

The label files in foreign/ were written once, by FiftyOne 1.22.1, labelme 6.3.1 and datasets 5.2.0,
about the objects of tests/support/evaluations.py. supervision writes here.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.inputs import Problems, find_images
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
    write_roboflow_yolo,
    write_voc,
    write_yolo,
    write_yolo_of_label_studio,
)

FOREIGN = Path(__file__).parent / "foreign"
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


def coco(dataset: Any, folder: Path) -> None:
    dataset.as_coco(str(folder), str(folder / "_annotations.coco.json"))


def yolo(dataset: Any, folder: Path) -> None:
    places = (folder / "val" / "images", folder / "val" / "labels", folder / "data.yaml")
    dataset.as_yolo(*map(str, places))


def voc(dataset: Any, folder: Path) -> None:
    dataset.as_pascal_voc(str(folder), str(folder))


def createml(dataset: Any, folder: Path) -> None:
    dataset.as_createml(str(folder), str(folder / "_annotations.createml.json"))


def labelme(dataset: Any, folder: Path) -> None:
    dataset.as_labelme(str(folder), str(folder))


@pytest.mark.parametrize("write", [coco, yolo, voc, createml, labelme])
def test_files_of_supervision_are_read_whole(
    write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    write_images(tmp_path / "source")
    annotations = {}
    for name, labelled in OBJECTS.items():
        boxes = np.array([box for _, box in labelled], dtype=float).reshape(-1, 4)
        ids = np.array([CLASSES.index(label) for label, _ in labelled], dtype=int)
        path = str(tmp_path / "source" / name)
        annotations[path] = sv.Detections(xyxy=boxes, class_id=ids)
    write(sv.DetectionDataset(list(CLASSES), list(annotations), annotations), tmp_path / "dataset")
    assert_objects(read_dataset(tmp_path / "dataset"))


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image," * 1001 + "\n", "at most 1000 columns"),
        (f'image,text\na.png,"{"x" * 200_000}"\n', "field larger than field limit"),
        (f'"{"x" * 200_000}"', "must have a column image, file_name"),
        ("name,text\na.png,x\n", "must have a column image, file_name"),
    ],
)
def test_csv_is_bounded(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        read_dataset(tmp_path / "x.csv")


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
    assert problems.counts == {"object left out": 2}
    assert "a line has no box" in problems.lines[0]


def test_lvis_names_images_by_url(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    document = json.loads((folder / "annotations.json").read_text())
    for image in document["images"]:
        name = image.pop("file_name")
        image |= {
            "coco_url": f"http://images.cocodataset.org/val2017/{name}",
            "neg_category_ids": [],
        }
    (folder / "annotations.json").write_text(json.dumps(document))
    dataset = read_dataset(folder)
    assert_objects(dataset)
    assert dataset.note.startswith("LVIS labels some classes")


@pytest.mark.parametrize("prefix", ["C:\\Users\\ann\\images\\", "/home/ann/images/", "images\\"])
def test_paths_of_another_machine(prefix: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    document = json.loads((folder / "annotations.json").read_text())
    for image in document["images"]:
        image["file_name"] = prefix + image["file_name"]
    (folder / "annotations.json").write_text(json.dumps(document))
    assert_objects(read_dataset(folder))
    if prefix != "images\\":
        assert_objects(read_dataset(folder, folder / "images"))
        document["images"][1]["file_name"] = "/elsewhere/a.png"
        (folder / "annotations.json").write_text(json.dumps(document))
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
    document = json.loads((folder / "samples.json").read_text())
    for index, sample in enumerate(document["samples"]):
        document["samples"][index] = {"guess": {"detections": []}} | sample
    (folder / "samples.json").write_text(json.dumps(document))
    dataset = read_dataset(folder)
    assert_objects(dataset)
    assert dataset.ignored == {"field guess not read": 3}
    document["samples"][1]["ground_truth"]["detections"][0]["iscrowd"] = 1
    (folder / "samples.json").write_text(json.dumps(document))
    (true,) = read_dataset(folder).images[1].objects or ()
    assert true.is_crowd
