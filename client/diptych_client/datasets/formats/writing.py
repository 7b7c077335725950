"""The formats that `annotate` writes, one a line, and lists for review."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Literal

from diptych_client.conversion import converted_name
from diptych_client.datasets.formats.boxes import write_labelme
from diptych_client.datasets.formats.coco import write_coco
from diptych_client.datasets.formats.csv_tables import write_csv
from diptych_client.datasets.formats.export import SPLITS, Export
from diptych_client.datasets.formats.json_lines import (
    write_florence2,
    write_json_lines,
    write_paligemma,
)
from diptych_client.datasets.formats.voc import write_voc
from diptych_client.datasets.formats.yolo import write_yolo
from diptych_client.datasets.inputs import (
    IMAGE_LEFT_OUT,
    NOT_UTF8,
    ImageFile,
    Problems,
    files_below,
    is_utf8,
)
from diptych_client.datasets.long_runs import Outputs, RunError
from diptych_client.datasets.records import Job, Record

DatasetFormat = Literal["coco", "yolo", "voc", "labelme", "csv", "paligemma", "florence2", "jsonl"]
_BOXES = ("detections", "instances")
_FILES = (
    "annotations.json",
    "answers.jsonl",
    "dataset.yaml",
    "guarantee.json",
    "label_studio.json",
    "review.json",
)
_FOLDERS = ("labels", "Annotations", "ImageSets", *SPLITS)
_MAX_STEM_BYTES = 251  # of an image: with its suffix, file systems allow 255
_MAX_LABELLED_STEM_BYTES = 240  # of one with a label file, whose suffix may be longer
_LABEL_SUFFIXES = (".csv", ".json", ".jsonl", ".txt", ".xml")


@dataclass(frozen=True, slots=True)
class Writer:
    """A writer, the results that it can hold, and the folder of its images."""

    write: Callable[[Export], Path]
    results: tuple[str, ...]
    images: str = ""
    label_files: str = ""  # one for each image


WRITERS: dict[DatasetFormat, Writer] = {
    "coco": Writer(write_coco, _BOXES),
    "yolo": Writer(write_yolo, _BOXES, "images/{split}", "labels/{split}/{stem}.txt"),
    "voc": Writer(write_voc, _BOXES, "JPEGImages", "Annotations/{stem}.xml"),
    "labelme": Writer(write_labelme, _BOXES, "{split}", "{split}/{stem}.json"),
    "csv": Writer(write_csv, (*_BOXES, "text"), "{split}"),
    "paligemma": Writer(write_paligemma, ("detections", "text"), "{split}"),
    "florence2": Writer(write_florence2, ("detections", "text"), "{split}"),
    "jsonl": Writer(write_json_lines, (*_BOXES, "text", "text_regions")),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how a dataset is written; `folder` is that of the images."""

    dataset_format: DatasetFormat
    outputs: Outputs
    folder: Path
    job: Job
    val_share: float = 0.0


def writable_images(
    dataset_format: DatasetFormat, images: Sequence[ImageFile], problems: Problems
) -> list[ImageFile]:
    """Leave out images whose names the format cannot hold; raise `RunError` if none is left."""
    writer = WRITERS[dataset_format]
    max_bytes = _MAX_LABELLED_STEM_BYTES if writer.label_files else _MAX_STEM_BYTES
    writable = []
    for image in images:
        stem = PurePosixPath(converted_name(image.name)).stem
        if not is_utf8(image.name):
            problems.add(image.name, NOT_UTF8, IMAGE_LEFT_OUT)
        elif writer.images and len(stem.encode()) > max_bytes:
            rule = f"its name is longer than the {max_bytes} bytes that {dataset_format} allows"
            problems.add(image.name, f"{rule}, without the suffix: rename it", IMAGE_LEFT_OUT)
        else:
            writable.append(image)
    if not writable:
        raise RunError(f"no image is left: {problems.lines[-1]}")
    return writable


def check_format(
    dataset_format: DatasetFormat,
    result: str,
    images: Sequence[ImageFile],
    is_reviewed: bool = False,
) -> None:
    """Raise `RunError` if the format cannot hold results of this key or these image names."""
    writer = WRITERS[dataset_format]
    if is_reviewed and (result not in _BOXES or dataset_format == "jsonl"):
        rule = "--consensus and --labelled accept boxes and masks, in any --format but jsonl"
        raise RunError(f"{rule}; the task's result is {result}, and --format is {dataset_format}")
    if result not in writer.results:
        holds = f"{dataset_format} holds {', '.join(writer.results)}"
        forms = [form for form, other in WRITERS.items() if result in other.results]
        rule = f"use --format {' or '.join(forms)}"
        raise RunError(f"{holds}, but the task's result is {result}: {rule}")
    if dataset_format == "yolo":
        for image in images:  # trainers replace the last `images` of a path
            if "images" in PurePosixPath(image.name).parent.parts:
                rule = "a subfolder must not be named images in a YOLO dataset: rename it"
                raise RunError(f"{image.name}: {rule}")
    names = map(converted_name, map(attrgetter("name"), images))
    stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
    for stem, count in stems.items() if writer.label_files else ():
        if count > 1:
            raise RunError(f"{count} images would share the labels of {stem}: rename all but one")


def check_outputs(
    dataset_format: DatasetFormat, outputs: Outputs, folder: Path, images: Sequence[ImageFile]
) -> None:
    """Raise `RunError` if the output has labels or images that this command did not write."""
    outputs.check(outputs.folder / name for name in _FILES)
    for name in _FOLDERS:
        path = outputs.folder / name
        outputs.check(map(path.joinpath, files_below(path, *_LABEL_SUFFIXES)))
    place = WRITERS[dataset_format].images
    for split in SPLITS if place else ():
        for image in images:
            link = outputs.folder / place.replace("{split}", split) / converted_name(image.name)
            outputs.has_link(folder / image.name, link)


def write_dataset(target: Target, records: Sequence[Record]) -> Path:
    """Write the records in the splits of their images; return the path of the dataset."""
    writer = WRITERS[target.dataset_format]
    splits: dict[str, list[Record]] = {"train": []}
    for record in records:
        if writer.images:
            image = replace(record.image, name=converted_name(record.image.name))
            record = replace(record, image=image)
        splits.setdefault(split_of(record.image.name, target.val_share), []).append(record)
    classes = class_indices(records, target.job.requested_labels())
    export = Export(target.outputs, target.folder, target.job, splits, classes)
    if writer.images:
        export.link_images(writer.images)
    return writer.write(export)


def remove_image(target: Target, name: str) -> None:
    """Remove an image and its labels that an earlier run wrote."""
    writer = WRITERS[target.dataset_format]
    path = PurePosixPath(converted_name(name))
    places = [f"{writer.images}/{path}"] if writer.images else []
    if writer.label_files:
        places.append(writer.label_files.replace("{stem}", str(path.with_suffix(""))))
    for split in SPLITS:
        for place in places:
            target.outputs.remove(target.outputs.folder / place.replace("{split}", split))


def split_of(name: str, val_share: float) -> str:
    """Return the split of an image, which no other image changes."""
    number = int.from_bytes(blake2b(name.encode(), digest_size=4).digest())
    return "val" if number < val_share * 2**32 else "train"


def class_indices(records: Sequence[Record], requested_labels: Sequence[str]) -> dict[str, int]:
    """Return the index of every class: requested labels in their order, then all others by name."""
    answered = set[str]()
    for record in records:
        answered.update(item.category for item in record.items)
    names = dict.fromkeys([*requested_labels, *sorted(answered)])
    return {name: index for index, name in enumerate(names)}
