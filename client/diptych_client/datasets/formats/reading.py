"""The formats of datasets, one a line; a folder of none is one of images without labels.

A reader returns None for files of another format; the first that knows them reads them.
"""

import os.path
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import normpath

from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    NoSuchSplit,
    Selection,
    classes_of,
    label_counts,
    read_head,
    splits_in,
)
from diptych_client.datasets.formats.boxes import (
    read_createml,
    read_cvat,
    read_fiftyone,
    read_labelme,
)
from diptych_client.datasets.formats.coco import read_coco
from diptych_client.datasets.formats.csv_tables import is_csv_labels, read_csv
from diptych_client.datasets.formats.hugging_face import read_hugging_face
from diptych_client.datasets.formats.json_lines import read_json_lines
from diptych_client.datasets.formats.label_studio import read_label_studio
from diptych_client.datasets.formats.voc import read_voc
from diptych_client.datasets.formats.yolo import is_yolo, read_yolo, read_yolo_folder
from diptych_client.datasets.inputs import (
    EMPTY_IMAGE,
    IMAGE_LEFT_OUT,
    LABEL_SUFFIXES,
    NOT_UTF8,
    Folder,
    Problems,
    files_below,
    find_images,
    image_names,
    is_shown,
    is_utf8,
)
from diptych_client.datasets.long_runs import RunError


@dataclass(frozen=True, slots=True)
class Format:
    """A reader, its files' suffixes, and their patterns in a folder; without any it reads this."""

    name: str
    read: Callable[[Path, Selection], Dataset | None]
    suffixes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    is_labels: Callable[[Path], bool] | None = None  # if other files have such names, too


_JSON = (".json",)
_JSON_NAMES = ("annotations.json", "labels.json", "samples.json", "_annotations.*.json")
_JSON_PATTERNS = (
    *_JSON_NAMES,
    *map("*/{}".format, _JSON_NAMES),
    "annotations/instances_*.json",
    "*.json",
)
_YAML = ("data.yaml", "dataset.yaml", "data.yml", "*.yaml", "*.yml")
_JSON_LINES = ("*.jsonl", "*/metadata.jsonl", "*/labels.jsonl", "*/_annotations.*.jsonl")
_CSV = ("*.csv", "*/metadata.csv", "*/labels.csv", "*/_annotations.csv")
_XML = ("annotations.xml", "*/annotations.xml", "labels.xml")
FORMATS = (
    Format("YOLO", read_yolo, (".yaml", ".yml"), _YAML, is_yolo),
    Format("Pascal VOC", read_voc),
    Format("Hugging Face", read_hugging_face, (".parquet", ".arrow")),
    Format("JSON lines", read_json_lines, (".jsonl",), _JSON_LINES),
    Format("CVAT", read_cvat, (".xml",), _XML),
    Format("YOLO", read_yolo_folder),
    Format("LabelMe", read_labelme, _JSON),
    Format("CreateML", read_createml, _JSON, _JSON_PATTERNS),
    Format("FiftyOne", read_fiftyone, _JSON, _JSON_PATTERNS),
    Format("Label Studio", read_label_studio, _JSON, _JSON_PATTERNS),
    Format("COCO", read_coco, _JSON, _JSON_PATTERNS),
    Format("CSV", read_csv, (".csv",), _CSV, is_csv_labels),
)
_WITH_SPLITS = (".yaml", ".yml", ".parquet", ".arrow")
_NAMES = ", ".join(dict.fromkeys(form.name for form in FORMATS))
_NOTES = "notes.json"  # Label Studio's, beside its exports of COCO and YOLO
_RECORD = "written.jsonl"  # of a folder that `annotate` wrote; the following are its logs and lists
_LISTS = re.compile(
    r"(guarantee|label_studio|order|pilot|review)\.json|(failures|journal|review|written)\.jsonl"
)
_MAX_LISTED_FILES = 10
_MAX_HEAD_BYTES = 80


def read_dataset(
    path: Path,
    images: Path | None = None,
    split: str | None = None,
    problems: Problems | None = None,
) -> Dataset:
    """Read a dataset of any known format; `images` is the folder of its images, if elsewhere."""
    selection = Selection(images, split, problems or Problems())
    problems = selection.problems
    num_earlier = len(problems.lines)  # of other inputs
    dataset = _read(_inner_folder(path, selection), selection)
    num_unlabelled = _num_unlabelled(path, dataset, problems)
    dataset = with_files(path, dataset, problems)
    if not dataset.images:
        cause = next(iter(problems.lines[num_earlier:]), f"{path} has no image")
        raise RunError(f"no image is left: {cause}")
    if images is not None and dataset.store != Folder(images):
        known = f"the labels in {path} say where their images are"
        raise RunError(f"--images is not for YOLO, Parquet and Arrow files; {known}")
    labels = label_counts(dataset.images)
    note = dataset.note
    if problems.counts and not labels:
        note = note or f"no labels were understood: {problems.summary()}"
    ignored = dict(problems.counts)
    split = split or dataset.split
    if not split and num_unlabelled:
        ignored["image without labels"] = num_unlabelled
    classes = dataset.classes or classes_of(dataset.images)
    dataset = replace(dataset, classes=classes, note=note, split=split)
    return replace(dataset, labels=labels, ignored=ignored)


def _num_unlabelled(path: Path, dataset: Dataset, problems: Problems) -> int:
    """Return the number of image files that no label file names; count all other files."""
    if not path.is_dir() or not isinstance(dataset.store, Folder):
        return 0
    folder = Path(os.path.abspath(path))
    store = Path(os.path.abspath(dataset.store.path))
    if not store.is_relative_to(folder):
        folder = store
    labelled_names = set[str]()
    for labelled in dataset.images:
        name = normpath((store.relative_to(folder) / labelled.image.name).as_posix())
        labelled_names |= {name, name.rpartition("#page=")[0]}
    return len(set(image_names(folder, problems)) - labelled_names)


def _inner_folder(path: Path, selection: Selection) -> Path:
    """Return the only folder in a folder: an unpacked archive often has one."""
    while path.is_dir():
        entries = [entry for entry in path.iterdir() if is_shown(entry.name)]
        is_folder = len(entries) == 1 and entries[0].is_dir()
        is_split = selection.split is not None and selection.includes(entries[0].name)
        if not is_folder or entries[0].name == "Annotations" or is_split:
            break
        path = entries[0]
    return path


def with_files(path: Path, dataset: Dataset, problems: Problems) -> Dataset:
    """Leave out images without a file or a byte; those in a folder are counted with its files."""
    place = f" in {dataset.store.path}" if isinstance(dataset.store, Folder) else ""
    images = []
    for labelled in dataset.images:
        name = labelled.image.name
        if not labelled.image.mtime_ns:
            problems.add(path, f"there is no image {name!r:.200}{place}", "missing image left out")
        elif labelled.image.size_bytes and is_utf8(name):
            images.append(labelled)
        elif path.is_file() and is_utf8(name):
            problems.count(EMPTY_IMAGE)
        elif path.is_file():
            problems.add(name, NOT_UTF8, IMAGE_LEFT_OUT)
    return replace(dataset, images=images)


def _read(path: Path, selection: Selection) -> Dataset:
    split = selection.split
    if path.is_file() and split is not None and path.suffix.lower() not in _WITH_SPLITS:
        hint = "omit --split, or give the folder with the files of all splits"
        raise NoSuchSplit(f"{path} is one file: {hint}")
    for form in FORMATS:
        file = _file_of(form, path, selection)
        dataset = None if file is None else form.read(file, selection)
        if dataset is not None:
            splits = dataset.splits or splits_in(files_below(path))
            return replace(dataset, format=form.name, splits=splits)
    if path.is_file():
        raise RunError(f"{path}: expected a file of {_NAMES}, or a folder")
    if split is not None:
        known = ", ".join(splits_in(files_below(path))) or "none"
        raise NoSuchSplit(f"{path} has no label file of the split {split}; its splits: {known}")
    note = f"no labels found: looked for {_NAMES}"
    if others := files_below(path, *LABEL_SUFFIXES):
        head = read_head(path / others[0], _MAX_HEAD_BYTES).decode(errors="replace")
        note = f"{len(others)} files not understood, {others[0]} begins with {head!r}; {note}"
    unlabelled = list(map(LabelledImage, find_images(path)))
    if not unlabelled:
        raise RunError(f"{path} contains neither labels nor an image; looked for {_NAMES}")
    return Dataset(unlabelled, Folder(path), note=note)


def _file_of(form: Format, folder: Path, selection: Selection) -> Path | None:
    """Return the only match of the first pattern with one; raise `RunError` for several."""
    if folder.is_file():
        return folder if folder.suffix.lower() in form.suffixes else None
    if not form.patterns:
        return folder
    is_written = (folder / _RECORD).exists()
    for pattern in form.patterns:
        names = []
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            is_list = name == _NOTES or (is_written and _LISTS.fullmatch(name))
            is_hidden = is_list or "/." in f"/{name}"
            is_selected = path.suffix in _WITH_SPLITS or selection.includes(name)
            if not is_hidden and is_selected and (not form.is_labels or form.is_labels(path)):
                names.append(name)
        if len(names) > 1:
            several = f"several label files ({', '.join(names[:_MAX_LISTED_FILES])})"
            raise RunError(f"{folder} has {several}: choose one by --split, or give its path")
        if names:
            return folder / names[0]
    return None
