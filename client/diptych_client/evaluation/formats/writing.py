"""The datasets that `annotate` writes: COCO, YOLO, or JSON lines, and lists for review.

JSON lines, answers.jsonl: {"image": name, "answer": the JSON of REST}.
"""

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from diptych_client.evaluation.formats.annotations import coco_of_records
from diptych_client.evaluation.formats.yolo import check_yolo_names, write_yolo
from diptych_client.evaluation.questions import Job, Record
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import category_of
from diptych_client.transports.messages import to_json

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


class DatasetFormat(Enum):
    """Format of a dataset."""

    coco = "coco"
    yolo = "yolo"
    jsonl = "jsonl"


def check_format(
    dataset_format: DatasetFormat,
    result: str,
    images: Sequence[ImageFile],
    is_consensus: bool = False,
    is_proved: bool = False,
) -> None:
    """Raise `RunError` if the format cannot hold results of this key or these image names."""
    is_jsonl = dataset_format is DatasetFormat.jsonl
    has_boxes = result in _RESULTS_WITH_BOXES
    if not is_jsonl and not has_boxes:
        holds = f"{dataset_format.value} holds boxes and masks"
        raise RunError(f"{holds}, but the task's result is {result}: use --format jsonl")
    if is_proved and is_jsonl and has_boxes:
        raise RunError(f"--labelled accepts single boxes of {result}: use --format coco or yolo")
    if is_consensus and not is_proved and is_jsonl:
        rule = "--consensus compares boxes and masks and writes coco or yolo"
        raise RunError(f"{rule}, but the task's result is {result} and --format is jsonl")
    if dataset_format is DatasetFormat.yolo:
        check_yolo_names(images)


def check_outputs(outputs: Outputs, folder: Path, images: Sequence[ImageFile]) -> None:
    """Raise `RunError` if the output has labels or images that this command did not write."""
    out = outputs.folder
    outputs.check(out / name for name in _FILES)
    outputs.check(sorted((out / "labels").rglob("*.txt")))
    for image in images:
        outputs.has_link(folder / image.name, out / "images" / "train" / image.name)


def write_dataset(
    dataset_format: DatasetFormat,
    outputs: Outputs,
    folder: Path,
    records: Sequence[Record],
    job: Job,
) -> Path:
    if dataset_format is DatasetFormat.jsonl:
        rows = []
        for record in records:
            rows.append({"image": record.image.name, "answer": to_json(record.answer)})
        return outputs.write_lines(outputs.folder / "answers.jsonl", rows)
    classes = class_indices(records, job.requested_labels())
    if dataset_format is DatasetFormat.yolo:
        return write_yolo(outputs, folder, records, classes)
    document = json.dumps(coco_of_records(records, classes))
    return outputs.write(outputs.folder / "annotations.json", document)


def class_indices(records: Sequence[Record], requested_labels: Sequence[str]) -> dict[str, int]:
    """Return the index of every class: requested labels in their order, then all others by name."""
    answered = set[str]()
    for record in records:
        answered.update(map(category_of, record.items))
    names = dict.fromkeys([*requested_labels, *sorted(answered)])
    return {name: index for index, name in enumerate(names)}
