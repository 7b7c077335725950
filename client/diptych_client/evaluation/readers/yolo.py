"""Ultralytics' YOLO layout (docs.ultralytics.com), with or without its data.yaml.

data.yaml names the classes and the splits. A split is a folder of images, a list of folders, or a
text file of paths. The labels of …/images/….jpg are in …/labels/….txt, or beside the image: `class
x_center y_center width height`, or `class x1 y1 x2 y2 …`, as parts of the width and the height. All
of them are in the folder of data.yaml: its `path` is followed within it, and is often that of
another machine.

Without data.yaml the classes are in classes.txt (Label Studio, labelImg), obj.names (CVAT) or
_darknet.labels (Roboflow).
"""

import os.path
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    outlined,
    true_box,
)
from diptych_client.evaluation.foreign_files import read_lines, read_text, read_yaml
from diptych_client.inputs import Folder, Problems, find_images
from diptych_client.inputs.files import path_within
from diptych_client.inputs.problems import MALFORMED
from diptych_client.long_runs import RunError

YOLO_FILES = ("data.yaml", "dataset.yaml", "data.yml")
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SPLITS = ("val", "valid", "validation", "test", "train")  # tried in this order
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap width and height
_ROW = re.compile(r"\s*\d+(?:\.0*)?(?:\s+[-+.\deE]+){4}")  # the first line of labels
_MAX_SHARE = 1.01  # a box of a rounded file may reach beyond the image

Names = Mapping[int, str]


def read_yolo(path: Path, split: str | None, problems: Problems) -> Dataset:
    """Read one split, by default val."""
    document = read_yaml(path)
    if not isinstance(document, dict) or "names" not in document:
        raise RunError(f"{path} is not a YOLO dataset: it has no `names`")
    try:
        chosen = split or next((each for each in _SPLITS if document.get(each)), None)
        if chosen is None or not document.get(chosen):
            raise RunError(f"{path} has no split {split or ' or '.join(_SPLITS)}")
        folder = Path(os.path.abspath(path.parent))
        sources = document[chosen] if isinstance(document[chosen], list) else [document[chosen]]
        root = folder
        with suppress(RunError):  # it is often the path on another machine
            root = path_within(folder, document.get("path") or ".")
        root = root if root.is_dir() else folder
        images: list[Path] = []
        for source in sources:
            images += _images(folder, root, source)
        dataset = _labelled_images(folder, images, _names(document["names"]), problems)
        others = [each for each in _SPLITS if document.get(each) and each != chosen]
        if split is not None or not others:
            return dataset
        note = f"the split {chosen} is read; --split reads {' or '.join(others)}"
        return replace(dataset, note=note)
    except MALFORMED as error:
        raise RunError(f"{path} is not a YOLO dataset: {error!r:.200}") from error


def read_yolo_folder(path: Path, split: str | None, problems: Problems) -> Dataset | None:
    """Read images with label files but no data.yaml; return None if no image has one."""
    folder = Path(os.path.abspath(path))
    images = []
    is_labelled = False
    for image in find_images(folder):
        if split is None or split in PurePosixPath(image.name).parts:
            images.append(folder / image.name)
            file = _label_file(folder, folder / image.name)
            is_labelled = is_labelled or (
                file.is_file() and _ROW.match(read_text(file)) is not None
            )
    if not is_labelled:
        return None
    return _labelled_images(folder, images, _folder_names(folder, problems), problems)


def _names(listed: Any) -> Names:
    pairs = listed.items() if isinstance(listed, Mapping) else enumerate(listed)
    return {int(index): str(name) for index, name in pairs}


def _folder_names(folder: Path, problems: Problems) -> Names | None:
    """Return the classes of a folder without data.yaml, or None if no file names them."""
    for name in _CLASS_FILES:
        for file in sorted(folder.rglob(name))[:1]:
            lines = read_text(file).splitlines()
            return _names(line.strip() for line in lines if line.strip())
    for name in YOLO_FILES:  # the folder of a split was given
        if (folder.parent / name).is_file():
            return _names(read_yaml(folder.parent / name)["names"])
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
        lines = (line.strip() for line in read_text(path).splitlines())
        return [path_within(folder, str(path.parent / line)) for line in lines if line]
    rule = "the images of a YOLO dataset must be in the folder of its data.yaml"
    raise RunError(f"{path} does not exist; {rule}")


def _label_file(folder: Path, image: Path) -> Path:
    """Return the labels of an image: the last folder `images` of its path becomes `labels`."""
    name = image.relative_to(folder)
    before, is_below, below = f"/{name.as_posix()}".rpartition("/images/")
    label_path = f"{before}/labels/{below}" if is_below else below
    return folder / Path(label_path.removeprefix("/")).with_suffix(".txt")


def _labelled_images(
    folder: Path, images: Iterable[Path], names: Names | None, problems: Problems
) -> Dataset:
    store = Folder(folder)
    labelled = []
    found = set[int]()
    for image in images:
        file = _label_file(folder, image)
        rows = list(read_lines(file)) if file.is_file() else []
        try:
            size_wh = (0, 0)
            if rows:
                with Image.open(image) as opened:
                    size_wh = opened.size
                    if opened.getexif().get(0x0112) in _TRANSPOSED:
                        size_wh = size_wh[::-1]
        except (OSError, *MALFORMED) as error:
            problems.add(image, f"it has labels and cannot be opened ({error})", "image left out")
            continue
        objects = []
        for number, text in rows:
            with problems.leaving_out("object", f"{file}, line {number}"):
                index = int(float(text.split()[0]))
                objects.append(_object(names, index, text, size_wh))
                found.add(index)
        name = image.relative_to(folder).as_posix()
        labelled.append(LabelledImage(store.image(name), tuple(objects)))
    classes = map(str, sorted(found)) if names is None else names.values()
    return Dataset(labelled, store, tuple(classes))


def _object(names: Names | None, index: int, text: str, size_wh: tuple[int, int]) -> TrueObject:
    numbers = [float(word) for word in text.split()[1:]]
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
    edges = (*(center - size / 2), *(center + size / 2))
    return TrueObject(label, true_box(edges, text[:80]))
