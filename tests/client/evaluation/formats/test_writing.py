"""Datasets that `annotate` writes, read back: COCO, YOLO, JSON lines."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from diptych_client import (
    Answer,
    AnswerOptions,
    Detection,
    DetectionsResult,
    ImageSize,
    InstancesResult,
    TaskParameters,
)
from diptych_client.evaluation.formats.coco import coco_of_records
from diptych_client.evaluation.formats.label_studio import label_studio_task
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.formats.writing import (
    DatasetFormat,
    Target,
    check_format,
    class_indices,
    write_dataset,
)
from diptych_client.evaluation.formats.yolo import yolo_lines
from diptych_client.evaluation.questions import Job, Record
from diptych_client.geometry import joined_rings, polygons_mask
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Result, box_of, items_of, label_of
from diptych_client.transports.messages import from_json
from tests.support.client_answers import (
    DETECTIONS,
    FAR_SQUARE,
    HOLE,
    INSTANCES,
    MASKS,
    SIZE,
    SQUARE,
    TEXT,
    record,
)

BOXES = "detections"
COCO_FORMAT, YOLO_FORMAT, JSON_LINES = DatasetFormat.coco, DatasetFormat.yolo, DatasetFormat.jsonl


def write(
    dataset_format: DatasetFormat,
    folder: Path,
    records: Sequence[Record],
    labels: Sequence[str] = (),
) -> Path:
    """Write a dataset into a folder `out` beside the images."""
    job = Job("object_detection", "some-model", TaskParameters(labels=labels), AnswerOptions())
    with Outputs(folder / "out") as outputs:
        return write_dataset(Target(dataset_format, outputs, folder, job), records)


def coco_of(folder: Path, *records: Record) -> Any:
    document = coco_of_records(records, class_indices(records, ()))
    (folder / "annotations.json").write_text(json.dumps(document))
    return COCO(folder / "annotations.json")


def test_coco_has_the_boxes_of_answers(tmp_path: Path) -> None:
    records = (record(DETECTIONS, "a.png"), record(DetectionsResult(()), "b/c.png"))
    coco = coco_of(tmp_path, *records, record(DETECTIONS, "d.png"))
    images = [(number, image["file_name"]) for number, image in coco.imgs.items()]
    assert images == [(1, "a.png"), (2, "b/c.png"), (3, "d.png")]
    row = coco.anns[3]
    assert coco.cats[row["category_id"]]["name"] == "star"
    assert (row["bbox"], row["area"], row["score"]) == ([30, 4, 6, 6], 36, 0.25)
    assert len(coco.anns) == 6


def test_coco_has_the_masks_with_holes(tmp_path: Path) -> None:
    coco = coco_of(tmp_path, record(INSTANCES))
    ring, pair = coco.loadAnns(coco.getAnnIds())
    assert isinstance(pair["segmentation"], list)
    assert [ring["area"], pair["area"]] == [84, 200]
    for annotation, instance in zip((ring, pair), INSTANCES.instances, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), instance.to_mask(SIZE))
    first, _ = INSTANCES.instances
    empty = record(InstancesResult((type(first)(first.box_xyxy, "nothing", 0.5, ()),)))
    for one, area in ((record(MASKS, image=ImageSize(width=4, height=2)), 8), (empty, 0)):
        coco = coco_of(tmp_path, one)
        (annotation,) = coco.loadAnns(coco.getAnnIds())
        assert coco.annToMask(annotation).sum() == annotation["area"] == area


def test_yolo_has_images_and_labels_for_trainers(tmp_path: Path) -> None:
    records = (record(DETECTIONS, "a.png"), record(DetectionsResult(()), "sub/b.c.jpg"))
    for entry in records:
        path = tmp_path / entry.image.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(entry.image.name.encode())
    for _ in range(2):  # a second run replaces the first
        dataset = write(YOLO_FORMAT, tmp_path, records)
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
    rows = [list(map(float, line.split())) for line in (labels / "a.txt").read_text().splitlines()]
    assert rows == [
        pytest.approx([1, 6 / 40, 7 / 20, 10 / 40, 10 / 20], abs=1e-6),
        pytest.approx([0, 25 / 40, 9 / 20, 10 / 40, 10 / 20], abs=1e-6),
        pytest.approx([1, 33 / 40, 7 / 20, 6 / 40, 6 / 20], abs=1e-6),
    ]


def test_yolo_line_of_an_instance_is_its_outline() -> None:
    lines = yolo_lines(record(INSTANCES), {"ring": 0, "pair": 1}).splitlines()
    for line, rings in zip(lines, [(SQUARE, HOLE), (SQUARE, FAR_SQUARE)], strict=True):
        numbers = np.array(line.split()[1:], dtype=float).reshape(-1, 2)
        ring = tuple(map(tuple, (numbers * (SIZE.width, SIZE.height)).tolist()))
        np.testing.assert_array_equal(polygons_mask([ring], SIZE), polygons_mask(rings, SIZE))
    assert joined_rings([SQUARE]) == list(SQUARE)


@pytest.mark.parametrize("names", [['größe: "x"', "円 😀", "{a}", "no", "it's\\", "# 1"], []])
def test_yolo_names_of_any_language_are_read_back(tmp_path: Path, names: list[str]) -> None:
    text = write(YOLO_FORMAT, tmp_path, (), names).read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)["names"].values()) == names


@pytest.mark.parametrize("dataset_format", [COCO_FORMAT, YOLO_FORMAT])
def test_written_dataset_is_read_back(tmp_path: Path, dataset_format: DatasetFormat) -> None:
    Image.new("RGB", (SIZE.width, SIZE.height)).save(tmp_path / "a.png")
    write(dataset_format, tmp_path, [record(DETECTIONS, "a.png")])
    (tmp_path / "out" / "journal.jsonl").write_text("{}")
    images = tmp_path if dataset_format is COCO_FORMAT else None
    (labelled,) = read_dataset(tmp_path / "out", images).images
    for true, box in zip(labelled.objects or (), DETECTIONS.detections, strict=True):
        assert true.label == box.label
        assert true.box_xyxy == pytest.approx(box.box_xyxy, abs=1e-4)


@pytest.mark.parametrize("result", [DETECTIONS, INSTANCES])
def test_label_studio_task_is_read_back(tmp_path: Path, result: Result) -> None:
    Image.new("RGB", (SIZE.width, SIZE.height)).save(tmp_path / "a.png")
    task = label_studio_task((record(result, "a.png"),))
    (prediction,) = task["predictions"]
    export = [{"data": task["data"], "annotations": [{"result": prediction["result"]}]}]
    (tmp_path / "x.json").write_text(json.dumps(export))
    (labelled,) = read_dataset(tmp_path).images
    assert labelled.image.name == "a.png"
    for true, item in zip(labelled.objects or (), items_of(result), strict=True):
        assert true.label == label_of(item)
        assert true.box_xyxy == pytest.approx(box_of(item))


def test_json_lines_have_a_line_for_each_image(tmp_path: Path) -> None:
    records = [record(TEXT, "a.png"), record(TEXT, "sub/b.png")]
    path = write(JSON_LINES, tmp_path, records)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "sub/b.png"]
    assert [from_json(Answer, row["answer"]) for row in rows] == [one.answer for one in records]


def test_requested_labels_come_first() -> None:
    indices = class_indices([record(DETECTIONS)], ("tree", "star"))
    assert list(indices.items()) == [("tree", 0), ("star", 1), ("circle", 2)]
    unnamed = DetectionsResult((Detection((1, 1, 2, 2), "", 0.5),))
    assert class_indices([record(unnamed)], ()) == {"object": 0}


FORMATS: tuple[tuple[DatasetFormat, str, list[str], tuple[bool, ...], str], ...] = (
    (COCO_FORMAT, "text", [], (), "use --format csv or paligemma or florence2 or jsonl"),
    (YOLO_FORMAT, "text_regions", [], (True,), "use --format jsonl"),
    (YOLO_FORMAT, BOXES, ["a.png", "a.jpg"], (), "2 images would share the labels of a"),
    (YOLO_FORMAT, BOXES, ["x/images/a.png"], (), "must not be named images"),
    (JSON_LINES, "text", [], (True,), "--consensus compares boxes and masks and writes coco"),
    (JSON_LINES, BOXES, [], (True, True), "--labelled accepts single boxes of detections"),
    (COCO_FORMAT, BOXES, ["a.png", "a.jpg"], (), ""),
    (YOLO_FORMAT, "instances", ["a.png", "x/a.jpg", "images.png"], (True,), ""),
    (JSON_LINES, "text", ["a.png", "a.jpg"], (True, True), ""),
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
