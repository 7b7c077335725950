"""The format of a dataset by its files. A folder of none is one of images without labels.

A reader returns None for files of another format; the first that knows them reads them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from diptych_client.evaluation.dataset import (
    Dataset,
    Inventory,
    LabelledImage,
    NoSuchSplit,
    Selection,
    label_counts,
    read_json,
)
from diptych_client.evaluation.formats.annotations import (
    read_coco,
    read_cvat,
    read_label_studio,
    read_voc,
)
from diptych_client.evaluation.formats.rows import read_hugging_face, read_json_lines
from diptych_client.evaluation.formats.yolo import YOLO_FILES, read_yolo, read_yolo_folder
from diptych_client.inputs import Folder, Problems, find_images
from diptych_client.long_runs import RunError


def read_json_file(path: Path, selection: Selection) -> Dataset:
    document = read_json(path)
    return read_label_studio(path, document, selection) or read_coco(path, document, selection)


def read_voc_annotations(path: Path, selection: Selection) -> Dataset | None:
    return read_voc(path, selection) if (path / "Annotations").is_dir() else None


Read = Callable[[Path, Selection], Dataset | None]
# the files of a folder, and their reader; without a pattern it reads the folder
FOLDERS: tuple[tuple[tuple[str, ...], Read], ...] = (
    (YOLO_FILES, read_yolo),
    ((), read_voc_annotations),
    ((), read_hugging_face),
    (("*.jsonl", "*/metadata.jsonl"), read_json_lines),
    (("annotations.xml", "*/annotations.xml"), read_cvat),
    ((), read_yolo_folder),
    (
        (
            "annotations.json",
            "_annotations.coco.json",
            "*/_annotations.coco.json",
            "annotations/instances_*.json",
            "*.json",
        ),
        read_json_file,
    ),
    ((), read_voc),
)
FILES: Mapping[str, Read] = {
    ".json": read_json_file,
    ".jsonl": read_json_lines,
    ".xml": read_cvat,
    ".yaml": read_yolo,
    ".yml": read_yolo,
    ".parquet": read_hugging_face,
    ".arrow": read_hugging_face,
}
_WITHOUT_SPLITS = (".json", ".jsonl", ".xml")
LABEL_FILES = (
    "data.yaml or labels/*.txt (YOLO), *.xml (Pascal VOC, CVAT), *.json (COCO, Label Studio),"
    " *.jsonl, *.parquet or *.arrow"
)
# Label Studio's notes beside its exports of COCO and YOLO; logs beside what `annotate` writes
_NOT_LABELS = re.compile(r"notes\.json|(journal|failures|suggestions|written)\.jsonl")
_MAX_LISTED_FILES = 10


def read_dataset(
    path: Path,
    images: Path | None = None,
    split: str | None = None,
    problems: Problems | None = None,
) -> Dataset:
    """Read a dataset of any known format; `images` is the folder of its images, if elsewhere.

    Labels that are damaged are left out, and added to `problems`.
    """
    selection = Selection(images, split, problems or Problems())
    inner = path
    while inner.is_dir():  # an unpacked archive often has one folder
        inside = []
        for entry in inner.iterdir():
            if not entry.name.startswith((".", "__MACOSX")):
                inside.append(entry)
        is_folder = len(inside) == 1 and inside[0].is_dir()
        if not is_folder or inside[0].name in ("Annotations", split):
            break
        inner = inside[0]
    read = _read_file if inner.is_file() else _read_folder
    dataset = read(inner, selection)
    if not dataset.images:
        lines = selection.problems.lines
        raise RunError(f"no image is left: {lines[0] if lines else f'{path} has no image'}")
    if images is not None and dataset.store != Folder(images):
        known = f"the labels in {path} say where their images are"
        raise RunError(f"--images is for COCO, JSON lines, CVAT and Label Studio; {known}")
    labels = label_counts(dataset.images)
    ignored = dict(selection.problems.counts)
    return replace(dataset, inventory=Inventory(split=split or "", labels=labels, ignored=ignored))


def _read_folder(path: Path, selection: Selection) -> Dataset:
    for patterns, read in FOLDERS:
        file = _first(path, selection.split, *patterns) if patterns else path
        dataset = None if file is None else read(file, selection)
        if dataset is not None:
            return dataset
    if selection.split is not None:
        raise NoSuchSplit(f"{path} has no label file of the split {selection.split}")
    unlabelled = list(map(LabelledImage, find_images(path)))
    if not unlabelled:
        missing = "contains neither labels nor a JPEG, PNG or WebP file"
        raise RunError(f"{path} {missing}; looked for {LABEL_FILES}")
    return Dataset(unlabelled, Folder(path), note=f"no labels found: looked for {LABEL_FILES}")


def _read_file(path: Path, selection: Selection) -> Dataset:
    suffix = path.suffix.lower()
    if selection.split is not None and suffix in _WITHOUT_SPLITS:
        hint = "omit --split, or give the folder with the files of all splits"
        raise NoSuchSplit(f"{path} is one file: {hint}")
    dataset = FILES[suffix](path, selection) if suffix in FILES else None
    if dataset is None:
        known = ".json (COCO, Label Studio), .jsonl, .yaml (YOLO), .xml (CVAT) or .parquet file"
        raise RunError(f"{path}: expected a {known}, or a folder")
    return dataset


def _first(folder: Path, split: str | None, *patterns: str) -> Path | None:
    """Return the only match of the first pattern with one; raise `RunError` for several."""
    for pattern in patterns:
        names = []
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            is_selected = split is None or split in name or pattern in YOLO_FILES
            if not _NOT_LABELS.fullmatch(path.name) and is_selected:
                names.append(name)
        if len(names) > 1:
            several = f"several label files ({', '.join(names[:_MAX_LISTED_FILES])})"
            raise RunError(f"{folder} has {several}: choose one by --split, or give its path")
        if names:
            return folder / names[0]
    return None
