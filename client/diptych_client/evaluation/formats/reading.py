"""The format of a dataset by its files. A folder of none is one of images without labels."""

import re
from dataclasses import replace
from pathlib import Path

from diptych_client.evaluation.dataset import Dataset, LabelledImage, NoSuchSplit, read_json
from diptych_client.evaluation.formats.annotations import (
    is_label_studio,
    read_coco,
    read_cvat,
    read_label_studio,
    read_voc,
)
from diptych_client.evaluation.formats.rows import arrow_files, read_hugging_face, read_json_lines
from diptych_client.evaluation.formats.yolo import YOLO_FILES, read_yolo, read_yolo_folder
from diptych_client.inputs import Folder, Problems, find_images
from diptych_client.long_runs import RunError

LABEL_FILES = (
    "data.yaml or labels/*.txt (YOLO), *.xml (Pascal VOC, CVAT), *.json (COCO, Label Studio),"
    " *.jsonl, *.parquet or *.arrow"
)
# Label Studio's notes beside its exports of COCO and YOLO; logs beside what `annotate` writes
_NOT_LABELS = re.compile(r"notes\.json|(journal.*|failures|suggestions|written)\.jsonl")
_MAX_LISTED_FILES = 10
_JSON_LINES = ("*.jsonl", "*/metadata.jsonl")
_CVAT_FILES = ("annotations.xml", "*/annotations.xml")
_JSON_FILES = (
    "annotations.json",
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "annotations/instances_*.json",
    "*.json",
)


def read_dataset(
    path: Path,
    images: Path | None = None,
    split: str | None = None,
    problems: Problems | None = None,
) -> Dataset:
    """Read a dataset of any known format; `images` is the folder of its images, if elsewhere.

    Labels that are damaged are left out, and added to `problems`.
    """
    problems = Problems() if problems is None else problems
    inner = path
    while inner.is_dir():  # an unpacked archive often has one folder
        inside = []
        for entry in inner.iterdir():
            if not entry.name.startswith((".", "__MACOSX")):
                inside.append(entry)
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name == "Annotations":
            break
        inner = inside[0]
    read = _read_file if inner.is_file() else _read_folder
    dataset = read(inner, images, split, problems)
    if not dataset.images:
        cause = problems.lines[0] if problems.lines else f"{path} has no image"
        raise RunError(f"no image is left: {cause}")
    if images is not None and dataset.store != Folder(images):
        known = f"the labels in {path} say where their images are"
        raise RunError(f"--images is for COCO, JSON lines, CVAT and Label Studio; {known}")
    return replace(dataset, name=" ".join(filter(None, (path.resolve().name, split))))


def _read_folder(path: Path, images: Path | None, split: str | None, problems: Problems) -> Dataset:
    if not path.is_dir():
        raise RunError(f"{path} does not exist")
    if file := _first(path, None, *YOLO_FILES):
        return read_yolo(file, split, problems)
    if (path / "Annotations").is_dir():
        return read_voc(path, split, problems)
    if arrow_files(path):
        return read_hugging_face(path, split, problems)
    if file := _first(path, split, *_JSON_LINES):
        return read_json_lines(file, problems, images)
    if (file := _first(path, None, *_CVAT_FILES)) and (cvat := read_cvat(file, problems, images)):
        return cvat
    if (yolo := read_yolo_folder(path, split, problems)) is not None:
        return yolo
    if file := _first(path, split, *_JSON_FILES):
        return _read_json(file, problems, images)
    if next(path.rglob("*.xml"), None) is not None:
        return read_voc(path, split, problems)
    if split is not None:
        missing = f"has no label file of the split {split}"
        raise NoSuchSplit(f"{path} {missing}; looked for {LABEL_FILES}")
    unlabelled = [LabelledImage(image) for image in find_images(path)]
    if not unlabelled:
        missing = "contains neither labels nor a JPEG, PNG or WebP file"
        raise RunError(f"{path} {missing}; looked for {LABEL_FILES}")
    return Dataset(unlabelled, Folder(path), note=f"no labels found: looked for {LABEL_FILES}")


def _read_file(path: Path, images: Path | None, split: str | None, problems: Problems) -> Dataset:
    suffix = path.suffix.lower()
    if split is not None and suffix in (".json", ".jsonl", ".xml"):
        hint = "omit --split, or give the folder with the files of all splits"
        raise NoSuchSplit(f"{path} is one file: {hint}")
    match suffix:
        case ".json":
            return _read_json(path, problems, images)
        case ".jsonl":
            return read_json_lines(path, problems, images)
        case ".yaml" | ".yml":
            return read_yolo(path, split, problems)
        case ".parquet" | ".arrow":
            return read_hugging_face(path, split, problems)
        case ".xml":
            if (cvat := read_cvat(path, problems, images)) is not None:
                return cvat
            raise RunError(f"{path} is not of CVAT; of Pascal VOC give the folder")
    known = ".json (COCO, Label Studio), .jsonl, .yaml (YOLO), .xml (CVAT) or .parquet file"
    raise RunError(f"{path}: expected a {known}, or a folder")


def _read_json(path: Path, problems: Problems, images: Path | None) -> Dataset:
    document = read_json(path)
    read = read_label_studio if is_label_studio(document) else read_coco
    return read(path, document, problems, images)


def _first(folder: Path, split: str | None, *patterns: str) -> Path | None:
    """Return the only match of the first pattern with one; raise `RunError` for several."""
    for pattern in patterns:
        names = []
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            if not _NOT_LABELS.fullmatch(path.name) and (split is None or split in name):
                names.append(name)
        if len(names) > 1:
            several = f"several label files ({', '.join(names[:_MAX_LISTED_FILES])})"
            raise RunError(f"{folder} has {several}: choose one by --split, or give its path")
        if names:
            return folder / names[0]
    return None
