"""Datasets that `annotate` writes, read back: COCO, YOLO, JSON lines."""

import csv
import io
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diptych_client import (
    Answer,
    AnswerOptions,
    Detection,
    DetectionsResult,
    TaskParameters,
    TextResult,
)
from diptych_client.datasets.formats.json_lines import FLORENCE2, PALIGEMMA
from diptych_client.datasets.formats.label_studio import label_studio_task
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.formats.writing import (
    WRITERS,
    DatasetFormat,
    Target,
    check_format,
    check_outputs,
    class_indices,
    split_of,
    write_dataset,
)
from diptych_client.datasets.formats.yolo import yolo_lines
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.long_runs import Outputs, RunError
from diptych_client.datasets.records import Job, Record
from diptych_client.geometry import BoxXyxy, joined_rings, polygons_mask
from diptych_client.json_values import from_json
from diptych_client.results import Result
from tasks.florence2.grammar import box_tokens as florence2_box_tokens
from tasks.paligemma.grammar import box_tokens as paligemma_box_tokens
from tests.support.client_answers import (
    DETECTIONS,
    FAR_SQUARE,
    HOLE,
    INSTANCES,
    SIZE,
    SQUARE,
    TEXT,
    record,
)

BOXES = "detections"
JOB = Job("object_detection", "some-model", TaskParameters(), AnswerOptions())


def write(
    dataset_format: DatasetFormat,
    folder: Path,
    records: Sequence[Record],
    job: Job = JOB,
    val_share: float = 0.0,
) -> Path:
    """Write a dataset into a folder `out` beside the images."""
    with Outputs(folder / "out") as outputs:
        return write_dataset(Target(dataset_format, outputs, folder, job, val_share), records)


def labels_job(*labels: str) -> Job:
    return replace(JOB, parameters=TaskParameters(labels=labels))


def save_image(path: Path) -> None:
    Image.new("RGB", (SIZE.width, SIZE.height)).save(path)


def test_yolo_has_images_and_labels_for_trainers(tmp_path: Path) -> None:
    records = (record(DETECTIONS, "a.png"), record(DetectionsResult(()), "sub/b.c.jpg"))
    for entry in records:
        path = tmp_path / entry.image.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(entry.image.name.encode())
    for _ in range(2):  # a second run replaces the first
        dataset = write("yolo", tmp_path, records)
    assert yaml.safe_load(dataset.read_text(encoding="utf-8")) == {
        "path": str(tmp_path / "out"),
        "train": "images/train",
        "val": "images/train",
        "names": {0: "circle", 1: "star"},
    }
    train = tmp_path / "out" / "images" / "train"
    contents = {str(path.relative_to(train)): path.read_bytes() for path in train.rglob("*.*")}
    assert contents == {"a.png": b"a.png", "sub/b.c.jpg": b"sub/b.c.jpg"}
    labels = tmp_path / "out" / "labels" / "train"
    assert (labels / "sub" / "b.c.txt").read_text() == ""
    assert (labels / "a.txt").read_text().splitlines()[0] == "1 0.15 0.35 0.25 0.5"


def test_yolo_line_of_an_instance_is_its_outline() -> None:
    lines = yolo_lines(record(INSTANCES), {"ring": 0, "pair": 1}).splitlines()
    for line, rings in zip(lines, [(SQUARE, HOLE), (SQUARE, FAR_SQUARE)], strict=True):
        numbers = np.array(line.split()[1:], dtype=float).reshape(-1, 2)
        ring = tuple(map(tuple, (numbers * (SIZE.width, SIZE.height)).tolist()))
        np.testing.assert_array_equal(polygons_mask([ring], SIZE), polygons_mask(rings, SIZE))
    assert joined_rings([SQUARE]) == list(SQUARE)


@pytest.mark.parametrize("names", [['größe: "x"', "円 😀", "{a}", "no", "it's\\", "# 1"], []])
def test_yolo_names_of_any_language_are_read_back(tmp_path: Path, names: list[str]) -> None:
    text = write("yolo", tmp_path, (), labels_job(*names)).read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)["names"].values()) == names


# the largest distance of a written edge, in pixels of an image of 40 x 20
BOX_FORMATS: dict[DatasetFormat, float] = {
    "coco": 1e-4,
    "yolo": 1e-4,
    "voc": 0.5,
    "labelme": 1e-4,
    "csv": 0.005,
    "paligemma": 0.5 * 40 / 1023,
    "florence2": 0.5 * 40 / 1000,
}
LABELS = ("=1+2|'x", '\'-dog, "big"', "größe")


@pytest.mark.parametrize("val_share", [0.0, 0.8])
@pytest.mark.parametrize("dataset_format", BOX_FORMATS)
def test_written_dataset_is_read_back(
    tmp_path: Path, dataset_format: DatasetFormat, val_share: float
) -> None:
    boxes = [(1.26, 2, 11, 12.5), (20, 4, 30.75, 14), (33, 4, 36, 10)]
    detections = []
    for label, box in zip(LABELS, boxes, strict=True):
        detections.append(Detection(box, label, 0.5))
    records = []
    for name in ("a b.png", "sub/c.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        save_image(tmp_path / name)
        records.append(record(DetectionsResult(tuple(detections)), name))
    save_image(tmp_path / "d.png")
    records.append(record(DetectionsResult(()), "d.png"))
    write(dataset_format, tmp_path, records, val_share=val_share)
    (tmp_path / "out" / "journal.jsonl").write_text("{}")
    images = tmp_path if dataset_format == "coco" else None
    names = []
    for split in ("train", "val") if val_share else (None,):
        for labelled in read_dataset(tmp_path / "out", images, split).images:
            objects = labelled.objects
            assert objects is not None
            names.append(Path(labelled.image.name).name)
            expected = [] if names[-1] == "d.png" else detections
            assert [true.label for true in objects] == [box.label for box in expected]
            for true, detection in zip(objects, expected, strict=True):
                limit = BOX_FORMATS[dataset_format] + 1e-9
                assert true.box_xyxy == pytest.approx(detection.box_xyxy, abs=limit)
    assert sorted(names) == ["a b.png", "c.png", "d.png"]


TEXT_JOBS = [
    ("captioning", TaskParameters(), {"captions": 1}),
    ("ocr", TaskParameters(), {"texts": 1}),
    ("visual_question_answering", TaskParameters(question="+1?"), {"questions": 1}),
    ("region_description", TaskParameters(region=(4, 2, 20, 10)), {"texts": 1}),
]


@pytest.mark.parametrize(("task", "parameters", "labels"), TEXT_JOBS)
@pytest.mark.parametrize("name", ["csv", "paligemma", "florence2"])
def test_written_text_is_read_back(
    tmp_path: Path,
    name: DatasetFormat,
    task: str,
    parameters: TaskParameters,
    labels: dict[str, int],
) -> None:
    save_image(tmp_path / "a.png")
    text = TextResult('@two, "big"\n=dogs')
    job = replace(JOB, task=task, parameters=parameters)
    write(name, tmp_path, [record(text, "a.png")], job)
    dataset = read_dataset(tmp_path / "out")
    (labelled,) = dataset.images
    texts = [*(labelled.captions or ()), labelled.text]
    for question in labelled.questions:
        assert question.question == "+1?"
        texts += question.answers
    assert text.text in texts
    assert labelled.region == (parameters.region and pytest.approx(parameters.region, abs=0.05))
    assert dataset.labels == labels


@pytest.mark.parametrize("start", "=+-@\t\r\n\uff1d")
def test_cell_is_no_formula(tmp_path: Path, start: str) -> None:
    text = f"{start}1\r=1"
    save_image(tmp_path / "a.png")
    write("csv", tmp_path, [record(TextResult(text), "a.png")], replace(JOB, task="ocr"))
    (path,) = tmp_path.glob("out/train/labels.csv")
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1] == ["a.png", f"'{text}", ""]
    assert read_dataset(tmp_path / "out").images[0].text == text


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_pages_are_written_as_images_for_trainers(form: DatasetFormat, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pages = [Image.new("RGB", (40, 20), color) for color in ("red", "blue")]
    pages[0].save(folder / "scan.pdf", save_all=True, append_images=pages[1:])
    pages[1].save(folder / "a.avif")
    names = ("scan.pdf#page=1", "scan.pdf#page=2", "a.avif")
    records = [record(DETECTIONS, name) for name in names]
    check_format(form, BOXES, [one.image for one in records])
    for _ in range(2):  # the same files again
        path = write(form, folder, records)
    dataset = read_dataset(path)
    written = {image.image.name.rpartition("/")[2]: image for image in dataset.images}
    assert set(written) == {"scan.pdf#page=1.png", "scan.pdf#page=2.png", "a.avif.jpg"}
    assert all(len(image.objects or ()) == 3 for image in written.values())
    data = dataset.store.read(written["scan.pdf#page=2.png"].image)
    with Image.open(io.BytesIO(data)) as page:
        assert page.convert("RGB").getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=4)


def test_share_of_a_split() -> None:
    names = [f"{number}.png" for number in range(200)]
    splits = [split_of(name, 0.3) for name in names]
    assert 40 < splits.count("val") < 80
    assert {split_of(name, 0) for name in names} == {"train"}


@pytest.mark.parametrize("form", WRITERS)
def test_image_is_in_the_split_of_the_last_run(form: DatasetFormat, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{number}.png" for number in range(9)]
    for name in names:
        save_image(folder / name)
    records = [record(DETECTIONS, name) for name in names]
    out = tmp_path / "out"
    files = []
    for share in (0.3, 0, 0.3, 0.3):
        with Outputs(out) as outputs:
            target = Target(form, outputs, folder, JOB, share)
            check_outputs(form, outputs, folder, [one.image for one in records])
            write_dataset(target, records)
        files.append({path: path.read_bytes() for path in out.rglob("*.*")})
    record_path = out / "written.jsonl"
    for written in files:
        del written[record_path]
    assert files[0] == files[2] == files[3]
    assert files[0].keys() != files[1].keys()
    edited = out / "val" / "labels.csv"
    if edited.exists():
        edited.write_text("mine")
        with Outputs(out) as outputs, pytest.raises(RunError, match="not as this command wrote"):
            write_dataset(Target(form, outputs, folder, JOB), records)


@pytest.mark.parametrize("box", [(0, 0, 40, 20), (1.25, 2.5, 39.99, 19.99), (-3, 7.1, 55, 7.9)])
def test_locations_are_those_of_the_service(box: BoxXyxy) -> None:
    size_wh = (SIZE.width, SIZE.height)
    assert PALIGEMMA.tokens(box, size_wh) == paligemma_box_tokens(box, size_wh)
    assert FLORENCE2.tokens(box, size_wh) == florence2_box_tokens(box, size_wh)


@pytest.mark.parametrize("label", ["a;b", "<loc_1", "a>b"])
@pytest.mark.parametrize("name", ["paligemma", "florence2"])
def test_label_with_a_separator_is_refused(tmp_path: Path, name: DatasetFormat, label: str) -> None:
    with pytest.raises(RunError, match="cannot hold a label with ; < or >"):
        write(name, tmp_path, (), labels_job(label))


@pytest.mark.parametrize("result", [DETECTIONS, INSTANCES])
def test_label_studio_task_is_read_back(tmp_path: Path, result: Result) -> None:
    name = "a&b+1 %.png"
    save_image(tmp_path / name)
    task = label_studio_task((record(result, name),))
    assert task["data"]["image"].startswith("/data/local-files/?d=a%26b")
    (prediction,) = task["predictions"]
    assert prediction["model_version"] == "some-model"
    for region, item in zip(prediction["result"], result.items, strict=True):
        assert (region["from_name"], region["to_name"]) == ("label", "image")
        assert region["score"] == item.score
    export = [{"data": task["data"], "annotations": [{"result": prediction["result"]}]}]
    (tmp_path / "x.json").write_text(json.dumps(export))
    (labelled,) = read_dataset(tmp_path).images
    assert labelled.image.name == name
    for true, item in zip(labelled.objects or (), result.items, strict=True):
        assert true.label == item.label
        assert true.box_xyxy == pytest.approx(item.box_xyxy)


def test_json_lines_have_a_line_for_each_image(tmp_path: Path) -> None:
    records = [record(TEXT, "a.png"), record(TEXT, "sub/b.png")]
    path = write("jsonl", tmp_path, records)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "sub/b.png"]
    assert [from_json(Answer, row["answer"]) for row in rows] == [one.answer for one in records]


def test_requested_labels_come_first() -> None:
    indices = class_indices([record(DETECTIONS)], ("tree", "star"))
    assert list(indices.items()) == [("tree", 0), ("star", 1), ("circle", 2)]
    unnamed = DetectionsResult((Detection((1, 1, 2, 2), "", 0.5),))
    assert class_indices([record(unnamed)], ()) == {"object": 0}


FORMATS: tuple[tuple[DatasetFormat, str, list[str], tuple[bool, ...], str], ...] = (
    ("coco", "text", [], (), "use --format csv or paligemma or florence2 or jsonl"),
    ("yolo", "text_regions", [], (), "use --format jsonl"),
    ("yolo", BOXES, ["a.png", "a.jpg"], (), "2 images would share the labels of a"),
    ("yolo", BOXES, ["x/images/a.png"], (), "must not be named images"),
    ("jsonl", "text", [], (True,), "accept boxes and masks, in any --format but jsonl"),
    ("jsonl", BOXES, [], (True,), "and --format is jsonl"),
    ("coco", BOXES, ["a.png", "a.jpg"], (), ""),
    ("yolo", "instances", ["a.png", "x/a.jpg", "images.png"], (True,), ""),
    ("jsonl", "text", ["a.png", "a.jpg"], (), ""),
)


@pytest.mark.parametrize(("dataset_format", "result", "names", "flags", "message"), FORMATS)
def test_formats_hold_some_results_and_names(
    dataset_format: DatasetFormat,
    result: str,
    names: list[str],
    flags: tuple[bool, ...],
    message: str,
) -> None:
    images = [ImageFile(name, 1, 1) for name in names]
    with pytest.raises(RunError, match=message) if message else nullcontext():
        check_format(dataset_format, result, images, *flags)
