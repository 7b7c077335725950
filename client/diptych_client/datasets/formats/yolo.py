"""Ultralytics' YOLO layout (docs.ultralytics.com), with or without its YAML file.

A split of data.yaml is a folder of images, a list of folders, or a text file of paths. The labels
of …/images/….jpg are in …/labels/….txt, or beside it: `class x_center y_center width height`, or
`class x1 y1 x2 y2 …`, as parts of the width and the height; a confidence after a box is not read.
All of them are in the folder of data.yaml: its `path` is followed within it. Paths are often those
of another machine, such as /content/datasets/x/images/train: the folder here that they end with is
read. Without data.yaml the classes are in classes.txt (Label Studio, labelImg),
obj.names (CVAT) or _darknet.labels (Roboflow).

A written dataset has dataset.yaml, images/train (hard links, or copies on another file system) and
labels/train; without a split, `val` equals `train`.
"""

import os.path
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np
import yaml

from diptych_client.conversion import SUFFIXES
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    read_head,
    read_lines,
    read_text,
    read_yaml,
    upright_size,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.inputs import (
    MALFORMED,
    Folder,
    Problems,
    files_below,
    find_images,
    foreign_ends,
    path_within,
    spelling,
)
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Record
from diptych_client.geometry import joined_rings
from diptych_client.results import Instance

_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SPLITS = ("val", "valid", "validation", "test", "train")  # tried in this order
_ROW = re.compile(r"\s*\d+(?:\.0*)?(?:\s+[-+.\deE]+){4}")  # the first line of labels
_MAX_HEAD_BYTES = 1000
_MAX_SHARE = 1.01  # a box of a rounded file may reach beyond the image

Names = Mapping[int, str]


def is_yolo(path: Path) -> bool:
    """Return True if a YAML file has `names` and a split."""
    try:
        document = read_yaml(path)
    except RunError:
        return path.stem in ("data", "dataset")  # to name what is wrong in it
    return isinstance(document, dict) and "names" in document


def read_yolo(path: Path, selection: Selection) -> Dataset:
    """Read one split, by default val."""
    document = read_yaml(path)
    if not isinstance(document, dict) or "names" not in document:
        raise RunError(f"{path} is not a YOLO dataset: it has no `names`")
    try:
        splits = [name for name in _SPLITS if document.get(name)]
        own_names = [name for name in document if name == selection.split and document[name]]
        selected = next(filter(selection.includes, own_names + splits), "")
        folder = Path(os.path.abspath(path.parent))
        root = folder
        with suppress(RunError):  # it is often the path on another machine
            root = path_within(folder, str(document.get("path") or ".").replace("\\", "/"))
        sources = document[selected] if selected else []
        images = [] if splits else _included(folder, selection)  # supervision names no split
        for source in sources if isinstance(sources, list) else [sources]:
            images += _images(folder, root if root.is_dir() else folder, source)
        if not images and not selected:
            missing = selection.split or " or ".join(_SPLITS)
            known = ", ".join(splits) or "none"
            raise RunError(f"{path} has no split {missing}; its splits: {known}")
        dataset = _labelled_images(folder, images, _names(document["names"]), selection)
    except MALFORMED as error:
        raise RunError(f"{path} is not a YOLO dataset: {error!r:.200}") from error
    note = ""
    others = [name for name in splits if name != selected]
    if selection.split is None and others:
        note = f"the split {selected} is read; --split reads {' or '.join(others)}"
    return replace(dataset, note=note, split=selected, splits=tuple(splits))


def _included(folder: Path, selection: Selection) -> list[Path]:
    names = map(attrgetter("name"), find_images(folder))
    return list(map(folder.joinpath, filter(selection.includes, names)))


def read_yolo_folder(path: Path, selection: Selection) -> Dataset | None:
    """Read images with label files but no data.yaml; return None if no image has one."""
    folder = Path(os.path.abspath(path))
    images = _included(folder, selection)
    for image in images:
        file = _label_file(folder, image)
        if file is not None and _ROW.match(read_text(file)):
            class_names = _folder_names(folder, selection.problems)
            return _labelled_images(folder, images, class_names, selection)
    return None


def _names(value: Any) -> Names:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {int(index): str(name) for index, name in pairs}


def _folder_names(folder: Path, problems: Problems) -> Names | None:
    """Return the classes of a folder without data.yaml, or None if no file names them."""
    for name in _CLASS_FILES:
        for file in files_below(folder, Path(name).suffix):
            if Path(file).name == name:
                lines = map(str.strip, read_text(folder / file).splitlines())
                return _names(filter(None, lines))
    problems.add(folder, f"none of {', '.join(_CLASS_FILES)}", "classes named by their numbers")
    return None


def _images(folder: Path, root: Path, source: str) -> list[Path]:
    """Return the images of a folder or of a text file of paths."""
    source = source.replace("\\", "/")
    below = source.removeprefix("../")
    if (
        below
        and below != source
        and not Path(os.path.abspath(root / source)).is_relative_to(folder)
    ):
        path = path_within(folder, below)  # Roboflow writes paths relative to a folder below
    else:
        path = _resolved(folder, root, source)
    if path.is_dir():
        return [path / image.name for image in find_images(path)]
    if path.is_file():
        lines = read_text(path).replace("\\", "/").splitlines()
        names = filter(None, map(str.strip, lines))
        return [_resolved(folder, path.parent, name) for name in names]
    rule = "the images of a YOLO dataset must be in the folder of its data.yaml"
    raise RunError(f"{path} does not exist; {rule}")


def _resolved(folder: Path, base: Path, name: str) -> Path:
    """Return a path in the folder of data.yaml: one of another machine is what it ends with."""
    path = Path(os.path.abspath(base / name))
    if not path.is_relative_to(folder) or not path.exists():
        path = next(filter(Path.exists, map(folder.joinpath, foreign_ends(name))), path)
    return path_within(folder, str(path))


def _label_path(image_name: str) -> PurePosixPath:
    """Return the labels of an image: the last folder `images` of its path becomes `labels`."""
    before, separator, below = f"/{image_name}".rpartition("/images/")
    label_path = f"{before}/labels/{below}" if separator else below
    return PurePosixPath(label_path.removeprefix("/")).with_suffix(".txt")


def _label_file(folder: Path, image: Path) -> Path | None:
    path = _label_path(image.relative_to(folder).as_posix())
    for suffix in (".txt", ".TXT"):
        if (name := spelling(folder, path.with_suffix(suffix).as_posix())) is not None:
            return folder / name
    return None


def _name_lone_labels(folder: Path, images: Iterable[Path], problems: Problems) -> None:
    """Name the label files without an image, in the folders of the labels of these images."""
    image_names = {image.relative_to(folder).as_posix() for image in images}
    label_folders = {_label_path(_composed(name)).parent for name in image_names}
    image_names.update(files_below(folder, *SUFFIXES))
    labels = {_label_path(_composed(name)) for name in image_names}
    for name in files_below(folder, ".txt"):
        path = PurePosixPath(_composed(name)).with_suffix(".txt")
        if path in labels or path.name in _CLASS_FILES or label_folders.isdisjoint(path.parents):
            continue
        head = read_head(folder / name, _MAX_HEAD_BYTES).decode(errors="replace")
        if "labels" in path.parts or _ROW.match(head):
            problems.add(folder / name, "it has no image", "label file left out")


def _composed(name: str) -> str:
    return normalize("NFC", name)


def _labelled_images(
    folder: Path, images: Collection[Path], names: Names | None, selection: Selection
) -> Dataset:
    problems = selection.problems
    store = Folder(folder)
    labelled_images = []
    indices = set[int]()
    for image in images:
        file = _label_file(folder, image)
        rows = [] if file is None else list(read_lines(file))
        try:
            size_wh = upright_size(image) if rows else (0, 0)
        except ValueError as error:
            problems.add(image, f"it has labels, and {error}", "image left out")
            continue
        objects = []
        for number, text in rows:
            with problems.leaving_out("object", f"{file}, line {number}"):
                index = int(float(text.split()[0]))
                numbers = list(map(float, text.split()[1:]))
                if len(numbers) == 5:  # a box and the confidence of a model
                    numbers.pop()
                    problems.count("confidence of an object not read")
                objects.append(_object(names, index, numbers, size_wh))
                indices.add(index)
        image_file = store.image(image.relative_to(folder).as_posix())
        labelled_images.append(LabelledImage(image_file, tuple(objects)))
    _name_lone_labels(folder, images, problems)
    classes = map(str, sorted(indices)) if names is None else names.values()
    return Dataset(labelled_images, store, tuple(classes))


def _object(
    names: Names | None, index: int, numbers: list[float], size_wh: tuple[int, int]
) -> TrueObject:
    if names is not None and index not in names:
        raise ValueError(f"class {index} is not one of the {len(names)} classes")
    if len(numbers) < 4 or len(numbers) % 2:
        rule = "expected a box or an outline after the class"
        raise ValueError(f"{rule}, got {len(numbers)} numbers")
    if max(map(abs, numbers)) > _MAX_SHARE:
        raise ValueError(f"coordinates must be parts of the image, 0 to 1, got {numbers[:8]}")
    label = str(index) if names is None else names[index]
    points = np.reshape(numbers, (-1, 2)) * size_wh
    if len(points) > 2:
        return TrueObject.outlined(label, points)
    center, size = points
    return TrueObject.boxed(label, (*(center - size / 2), *(center + size / 2)))


def write_yolo(export: Export) -> Path:
    """Write images, labels and dataset.yaml, and return its path."""
    out = export.outputs.folder
    export.write_each("labels/{split}", ".txt", partial(yolo_lines, classes=export.classes))
    document = {
        "path": str(out.resolve()),
        "train": "images/train",
        "val": "images/val" if "val" in export.splits else "images/train",
        "names": dict(enumerate(export.classes)),
    }
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    return export.outputs.write(out / "dataset.yaml", text)


def yolo_lines(record: Record, classes: Mapping[str, int]) -> str:
    """Return the label file of one image; empty if there are no boxes."""
    size_wh = (record.answer.image.width, record.answer.image.height)
    text = ""
    for box in record.items:
        if isinstance(box, Instance) and box.polygons_xy:
            shares = np.clip(np.array(joined_rings(box.polygons_xy)) / size_wh, 0, 1)
        else:
            x1, y1, x2, y2 = box.box_xyxy
            center_and_size = [((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1, y2 - y1)]
            shares = np.array(center_and_size) / size_wh
        numbers = [classes[box.category], *shares.reshape(-1)]
        text += " ".join(f"{number:.6g}" for number in numbers) + "\n"
    return text
