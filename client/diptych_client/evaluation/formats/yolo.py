"""Ultralytics' YOLO layout (docs.ultralytics.com), with or without its data.yaml.

A split of data.yaml is a folder of images, a list of folders, or a text file of paths. The labels
of …/images/….jpg are in …/labels/….txt, or beside it: `class x_center y_center width height`, or
`class x1 y1 x2 y2 …`, as parts of the width and the height. All of them are in the folder of
data.yaml: its `path` is followed within it, and is often that of another machine. Without data.yaml
the classes are in classes.txt (Label Studio, labelImg), obj.names (CVAT) or _darknet.labels
(Roboflow).

A written dataset has dataset.yaml, images/train (hard links, or copies on another file system) and
labels/train; `val` equals `train`, the split is the user's.
"""

import os.path
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    outlined,
    read_lines,
    read_text,
    read_yaml,
    true_box,
)
from diptych_client.evaluation.questions import Record
from diptych_client.geometry import PointXy, Ring
from diptych_client.inputs import MALFORMED, Folder, ImageFile, Problems, find_images, path_within
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Instance, box_of, category_of

YOLO_FILES = ("data.yaml", "dataset.yaml", "data.yml")
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SPLITS = ("val", "valid", "validation", "test", "train")  # tried in this order
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap width and height
_ROW = re.compile(r"\s*\d+(?:\.0*)?(?:\s+[-+.\deE]+){4}")  # the first line of labels
_MAX_SHARE = 1.01  # a box of a rounded file may reach beyond the image

Names = Mapping[int, str]


def read_yolo(path: Path, selection: Selection) -> Dataset:
    """Read one split, by default val."""
    split = selection.split
    document = read_yaml(path)
    if not isinstance(document, dict) or "names" not in document:
        raise RunError(f"{path} is not a YOLO dataset: it has no `names`")
    try:
        splits = [name for name in _SPLITS if document.get(name)]
        selected = split or next(iter(splits), None)
        if selected is None or not document.get(selected):
            raise RunError(f"{path} has no split {split or ' or '.join(_SPLITS)}")
        folder = Path(os.path.abspath(path.parent))
        sources = document[selected]
        if not isinstance(sources, list):
            sources = [sources]
        root = folder
        with suppress(RunError):  # it is often the path on another machine
            root = path_within(folder, document.get("path") or ".")
        root = root if root.is_dir() else folder
        images: list[Path] = []
        for source in sources:
            images += _images(folder, root, source)
        dataset = _labelled_images(folder, images, _names(document["names"]), selection.problems)
    except MALFORMED as error:
        raise RunError(f"{path} is not a YOLO dataset: {error!r:.200}") from error
    others = [name for name in splits if name != selected]
    if split is not None or not others:
        return dataset
    note = f"the split {selected} is read; --split reads {' or '.join(others)}"
    return replace(dataset, note=note)


def read_yolo_folder(path: Path, selection: Selection) -> Dataset | None:
    """Read images with label files but no data.yaml; return None if no image has one."""
    folder = Path(os.path.abspath(path))
    images = []
    is_labelled = False
    for image in find_images(folder):
        if selection.split in (None, *PurePosixPath(image.name).parts):
            images.append(folder / image.name)
            file = _label_file(folder, folder / image.name)
            if not is_labelled and file.is_file():
                is_labelled = _ROW.match(read_text(file)) is not None
    if not is_labelled:
        return None
    names = _folder_names(folder, selection.problems)
    return _labelled_images(folder, images, names, selection.problems)


def _names(value: Any) -> Names:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {int(index): str(name) for index, name in pairs}


def _folder_names(folder: Path, problems: Problems) -> Names | None:
    """Return the classes of a folder without data.yaml, or None if no file names them."""
    for name in _CLASS_FILES:
        for file in sorted(folder.rglob(name))[:1]:
            lines = read_text(file).splitlines()
            return _names(line.strip() for line in lines if line.strip())
    problems.add(folder, f"none of {', '.join(_CLASS_FILES)}", "classes named by their numbers")
    return None


def _images(folder: Path, root: Path, source: str) -> list[Path]:
    """Return the images of a folder or of a text file of paths."""
    path = Path(os.path.abspath(root / source))
    below = source.removeprefix("../")
    if below and below != source and not path.is_relative_to(folder):
        path = folder / below  # Roboflow writes paths relative to a folder below
    path = path_within(folder, str(path))
    if path.is_dir():
        return [path / image.name for image in find_images(path)]
    if path.is_file():
        lines = map(str.strip, read_text(path).splitlines())
        return [path_within(folder, str(path.parent / line)) for line in lines if line]
    rule = "the images of a YOLO dataset must be in the folder of its data.yaml"
    raise RunError(f"{path} does not exist; {rule}")


def _label_file(folder: Path, image: Path) -> Path:
    """Return the labels of an image: the last folder `images` of its path becomes `labels`."""
    name = image.relative_to(folder)
    before, separator, below = f"/{name.as_posix()}".rpartition("/images/")
    label_path = f"{before}/labels/{below}" if separator else below
    return folder / Path(label_path.removeprefix("/")).with_suffix(".txt")


def _labelled_images(
    folder: Path, images: Iterable[Path], names: Names | None, problems: Problems
) -> Dataset:
    store = Folder(folder)
    labelled_images = []
    indices = set[int]()
    for image in images:
        file = _label_file(folder, image)
        rows = list(read_lines(file)) if file.is_file() else []
        try:
            size_wh = _upright_size(image) if rows else (0, 0)
        except (OSError, *MALFORMED) as error:
            problems.add(image, f"it has labels and cannot be opened ({error})", "image left out")
            continue
        objects = []
        for number, text in rows:
            with problems.leaving_out("object", f"{file}, line {number}"):
                index = int(float(text.split()[0]))
                objects.append(_object(names, index, text, size_wh))
                indices.add(index)
        image_file = store.image(image.relative_to(folder).as_posix())
        labelled_images.append(LabelledImage(image_file, tuple(objects)))
    classes = map(str, sorted(indices)) if names is None else names.values()
    return Dataset(labelled_images, store, tuple(classes))


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        is_transposed = image.getexif().get(0x0112) in _TRANSPOSED
    return (height, width) if is_transposed else (width, height)


def _object(names: Names | None, index: int, text: str, size_wh: tuple[int, int]) -> TrueObject:
    numbers = list(map(float, text.split()[1:]))
    if names is not None and index not in names:
        raise ValueError(f"class {index} is not one of the {len(names)} classes")
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(f"expected a box or an outline after the class, got {text[:80]!r}")
    if max(map(abs, numbers)) > _MAX_SHARE:
        raise ValueError(f"coordinates must be parts of the image, 0 to 1, got {text[:80]!r}")
    label = str(index) if names is None else names[index]
    points = np.reshape(numbers, (-1, 2)) * size_wh
    if len(points) > 2:
        return outlined(label, points)
    center, size = points
    return TrueObject(label, true_box((*(center - size / 2), *(center + size / 2))))


def check_yolo_names(images: Sequence[ImageFile]) -> None:
    for image in images:  # trainers replace the last `images` of a path
        if "images" in PurePosixPath(image.name).parent.parts:
            rule = "a subfolder must not be named images in a YOLO dataset: rename it"
            raise RunError(f"{image.name}: {rule}")
    for name, count in Counter(map(_label_name, images)).items():
        if count > 1:
            raise RunError(f"{count} images would share labels/train/{name}: rename all but one")


def write_yolo(
    outputs: Outputs, folder: Path, records: Sequence[Record], classes: Mapping[str, int]
) -> Path:
    """Write images, labels and dataset.yaml, and return its path."""
    out = outputs.folder
    for record in records:
        name = record.image.name
        outputs.link(folder / name, out / "images" / "train" / name)
        labels = out / "labels" / "train" / _label_name(record.image)
        outputs.write(labels, yolo_lines(record, classes))
    document = {
        "path": str(out.resolve()),
        "train": "images/train",
        "val": "images/train",
        "names": dict(enumerate(classes)),
    }
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    return outputs.write(out / "dataset.yaml", text)


def yolo_lines(record: Record, classes: Mapping[str, int]) -> str:
    """Return the label file of one image; empty if there are no boxes."""
    size_wh = (record.answer.image.width, record.answer.image.height)
    text = ""
    for box in record.items:
        if isinstance(box, Instance) and box.polygons_xy:
            shares = np.clip(np.array(joined_rings(box.polygons_xy)) / size_wh, 0, 1)
        else:
            x1, y1, x2, y2 = box_of(box)
            center_and_size = [((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1, y2 - y1)]
            shares = np.array(center_and_size) / size_wh
        numbers = [classes[category_of(box)], *shares.reshape(-1)]
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
