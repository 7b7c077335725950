"""Datasets written from the records of a journal: COCO, YOLO, or JSON lines.

COCO (cocodataset.org, data format, object detection), annotations.json: boxes are [x, y, width,
height]; a segmentation is a list of polygons, which COCO joins, or run lengths if the union of the
polygons differs, as with a hole.

YOLO (docs.ultralytics.com, datasets for detection and segmentation); `val` equals `train`, the
split is the user's:

    dataset.yaml            path, train, val, names
    images/train/….jpg      hard links to the images, or copies on another file system
    labels/train/….txt      one line per box: class x_center y_center width height, or class x1 y1
                            x2 y2 …; 0 to 1

JSON lines, answers.jsonl: {"image": name, "answer": the JSON of REST}.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Record
from diptych_client.conversions.coco import UNNAMED, coco_shape
from diptych_client.geometry import (
    PointXy,
    Ring,
)
from diptych_client.inputs.files import ImageFile
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Detection, DetectionsResult, Instance, InstancesResult, Result
from diptych_client.transports.rest_messages import answer_json

_RESULTS_WITH_BOXES = ("detections", "instances")
_FILES = (
    "annotations.json",
    "answers.jsonl",
    "dataset.yaml",
    "guarantee.json",
    "label_studio.json",
    "review.json",
    "review.jsonl",
    "suggested.jsonl",
    "suggested_label_studio.json",
    "suggested_review.json",
)

Box = Detection | Instance


class DatasetFormat(Enum):
    """Format of a dataset."""

    coco = "coco"
    yolo = "yolo"
    jsonl = "jsonl"


def check_format(dataset_format: DatasetFormat, result: str, images: Sequence[ImageFile]) -> None:
    """Raise `RunError` if the format cannot hold results of this key or these image names."""
    if dataset_format is not DatasetFormat.jsonl and result not in _RESULTS_WITH_BOXES:
        holds = f"{dataset_format.value} holds boxes and masks"
        raise RunError(f"{holds}, but the task's result is {result}: use --format jsonl")
    if dataset_format is not DatasetFormat.yolo:
        return
    for image in images:  # trainers replace the last `images` of a path
        if "images" in PurePosixPath(image.name).parent.parts:
            rule = "a subfolder must not be named images in a YOLO dataset: rename it"
            raise RunError(f"{image.name}: {rule}")
    for name, count in Counter(map(_label_name, images)).items():
        if count > 1:
            raise RunError(f"{count} images would share labels/train/{name}: rename all but one")


def check_consensus(dataset_format: DatasetFormat, result: str) -> None:
    """Raise `RunError` if two such results cannot be compared, or the format has no boxes."""
    if dataset_format is DatasetFormat.jsonl or result not in _RESULTS_WITH_BOXES:
        given = f"the task's result is {result} and --format {dataset_format.value}"
        raise RunError(f"--consensus compares boxes and masks and writes coco or yolo, but {given}")


def check_guarantee(dataset_format: DatasetFormat, result: str, has_thresholds: bool) -> None:
    """Raise `RunError` if the format cannot hold a part of an answer, or there are no scores."""
    if has_thresholds and result == "text":
        raise RunError("--thresholds needs scores, which the task's result, a text, does not have")
    if dataset_format is DatasetFormat.jsonl and result in _RESULTS_WITH_BOXES:
        raise RunError(f"--labelled accepts single boxes of {result}: use --format coco or yolo")


def write_dataset(
    dataset_format: DatasetFormat,
    outputs: Outputs,
    folder: Path,
    records: Sequence[Record],
    job: Job,
) -> Path:
    """Write the dataset and return the path of its main file."""
    out = outputs.folder
    if dataset_format is DatasetFormat.jsonl:
        rows = ({"image": each.image.name, "answer": answer_json(each.answer)} for each in records)
        lines = (json.dumps(row) + "\n" for row in rows)
        return outputs.write(out / "answers.jsonl", "".join(lines))
    classes = class_indices(records, job.requested_labels())
    if dataset_format is DatasetFormat.yolo:
        return _write_yolo(outputs, folder, records, classes)
    return outputs.write(out / "annotations.json", json.dumps(coco_document(records, classes)))


def check_outputs(outputs: Outputs, folder: Path, images: Sequence[ImageFile]) -> None:
    """Raise `RunError` if the output has labels or images that this command did not write."""
    out = outputs.folder
    outputs.check(out / name for name in _FILES)
    outputs.check(sorted((out / "labels").rglob("*.txt")))
    for image in images:
        outputs.has_link(folder / image.name, out / "images" / "train" / image.name)


def class_indices(records: Sequence[Record], requested_labels: Sequence[str]) -> dict[str, int]:
    """Return the index of every class: requested labels in their order, then all others by name."""
    answered = set[str]()
    for record in records:
        answered.update(map(class_name, boxes_of(record.answer.result)))
    names = dict.fromkeys([*requested_labels, *sorted(answered)])
    return {name: index for index, name in enumerate(names)}


def boxes_of(result: Result) -> tuple[Box, ...]:
    match result:
        case DetectionsResult(boxes) | InstancesResult(boxes):
            return boxes
    raise ValueError(f"{type(result).__name__} has no boxes")


def class_name(box: Box) -> str:
    return box.label or UNNAMED


def coco_document(records: Sequence[Record], classes: Mapping[str, int]) -> dict[str, Any]:
    """Return the COCO document; ids count from 1, each annotation has the `score` of its box."""
    images = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, 1):
        size = record.answer.image
        image = {"id": image_id, "file_name": record.image.name}
        images.append(image | {"width": size.width, "height": size.height})
        for box in boxes_of(record.answer.result):
            ids = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": classes[class_name(box)] + 1,
            }
            annotations.append(ids | coco_shape(box, size))
    categories = [{"id": index + 1, "name": name} for name, index in classes.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def _write_yolo(
    outputs: Outputs, folder: Path, records: Sequence[Record], classes: Mapping[str, int]
) -> Path:
    out = outputs.folder
    for record in records:
        name = record.image.name
        outputs.link(folder / name, out / "images" / "train" / name)
        labels = out / "labels" / "train" / _label_name(record.image)
        outputs.write(labels, yolo_lines(record, classes))
    root = json.dumps(str(out.resolve()), ensure_ascii=False)  # a JSON string is a YAML string
    quoted = {index: json.dumps(name, ensure_ascii=False) for name, index in classes.items()}
    names = ", ".join(f"{index}: {name}" for index, name in quoted.items())
    yaml = f"path: {root}\ntrain: images/train\nval: images/train\nnames: {{{names}}}\n"
    return outputs.write(out / "dataset.yaml", yaml)


def yolo_lines(record: Record, classes: Mapping[str, int]) -> str:
    """Return the label file of one image; empty if there are no boxes."""
    width = record.answer.image.width
    height = record.answer.image.height
    text = ""
    for box in boxes_of(record.answer.result):
        if isinstance(box, Instance) and box.polygons_xy:
            ring = joined_rings(box.polygons_xy)
            shares = np.clip(np.array(ring) / (width, height), 0, 1)
        else:
            x1, y1, x2, y2 = box.box_xyxy
            center_and_size = [((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1, y2 - y1)]
            shares = np.array(center_and_size) / (width, height)
        numbers = [classes[class_name(box)], *shares.reshape(-1)]
        text += " ".join(f"{number:.6g}" for number in numbers) + "\n"
    return text


def joined_rings(rings: Sequence[Ring]) -> list[PointXy]:
    """Return one ring around several, joined by lines that are traversed both ways."""
    first, *others = rings
    start = first[0]
    joined = list(first)
    for ring in others:
        joined += [start, *ring, ring[0]]
    return [*joined, start] if others else joined


def _label_name(image: ImageFile) -> str:
    return PurePosixPath(image.name).with_suffix(".txt").as_posix()
