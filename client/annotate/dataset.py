"""The files that a labelled folder ends in, made from the journal's records."""

import json
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from client.annotate.classes import class_indices
from client.annotate.coco import coco_document
from client.annotate.images import ImageFile
from client.annotate.job import AnnotationError, Job
from client.annotate.journal import Record
from client.annotate.yolo import check_names, write_yolo
from client.rest_messages import answer_json

_RESULTS_WITH_BOXES = ("detections", "instances")


class DatasetFormat(Enum):
    """What is written: COCO's annotations.json, a YOLO folder, or answers.jsonl."""

    coco = "coco"
    yolo = "yolo"
    jsonl = "jsonl"


def check_format(dataset_format: DatasetFormat, result: str, images: Sequence[ImageFile]) -> None:
    """Raise `AnnotationError`, before anything is asked, where answers with this key do not fit the format."""
    if dataset_format is not DatasetFormat.jsonl and result not in _RESULTS_WITH_BOXES:
        name = dataset_format.value
        raise AnnotationError(f"the task answers with {result}, and {name} holds boxes and masks; take --format jsonl")
    if dataset_format is DatasetFormat.yolo:
        check_names(images)


def write_dataset(dataset_format: DatasetFormat, out: Path, folder: Path, records: Sequence[Record], job: Job) -> Path:
    """Write the records and return the path of the file to begin with."""
    if dataset_format is DatasetFormat.jsonl:
        lines = (json.dumps({"image": r.image.name, "answer": answer_json(r.answer)}) + "\n" for r in records)
        return _write_whole(out / "answers.jsonl", "".join(lines))
    classes = class_indices(records, job.asked_labels())
    if dataset_format is DatasetFormat.yolo:
        return write_yolo(out, folder, records, classes)
    return _write_whole(out / "annotations.json", json.dumps(coco_document(records, classes)))


def _write_whole(path: Path, text: str) -> Path:
    """Write a file that is there whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path
