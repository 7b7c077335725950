"""Ultralytics' YOLO layout (docs.ultralytics.com, datasets): data.yaml names the classes and the splits.

A split is a folder of images, a list of folders, or a text file of paths. The labels of …/images/….jpg are in
…/labels/….txt: `class x_center y_center width height`, or `class x1 y1 x2 y2 …`, as parts of the width and the height.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from diptych_client.annotate.job import find_images
from diptych_client.evaluation.dataset import Dataset, Folder, LabelledImage, TrueObject
from diptych_client.geometry import BoxXyxy, bounding_box
from diptych_client.long_runs import RunError

_SPLITS = ("val", "test", "train")  # tried in this order
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap width and height


def read_yolo(path: Path, split: str | None = None) -> Dataset:
    """Read one split, by default val."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or "names" not in document:
        raise RunError(f"{path} is not a YOLO dataset: it has no `names`")
    chosen = split or next((each for each in _SPLITS if document.get(each)), None)
    if chosen is None or not document.get(chosen):
        raise RunError(f"{path} has no split {split or ' or '.join(_SPLITS)}")
    root = (path.parent / str(document.get("path") or "")).resolve()
    root = root if root.is_dir() else path.parent.resolve()  # `path` is often that of another machine
    names = _class_names(document["names"])
    images = [image for source in _listed(document[chosen]) for image in _images(root, path.parent, source)]
    labelled = [_labelled(root, image, names) for image in images]
    return Dataset(labelled, Folder(root), tuple(names.values()))


def _class_names(names: Sequence[str] | Mapping[Any, str]) -> dict[int, str]:
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(index): str(name) for index, name in pairs}


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _images(root: Path, yaml_folder: Path, source: str) -> list[Path]:
    """Return the images of a folder or of a text file of paths."""
    path = root / source
    if not path.exists() and source.startswith("../"):  # Roboflow writes paths relative to a folder below
        path = yaml_folder / source.removeprefix("../")
    if path.is_dir():
        return [path / image.name for image in find_images(path)]
    if path.is_file():
        return [path.parent / line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    raise RunError(f"{path} does not exist")


def _labelled(root: Path, image: Path, names: Mapping[int, str]) -> LabelledImage:
    label_file = _label_file(image)
    lines = label_file.read_text(encoding="utf-8").splitlines() if label_file.is_file() else []
    rows = [[float(number) for number in line.split()] for line in lines if line.strip()]
    objects: tuple[TrueObject, ...] = ()
    if rows:
        size_wh = _upright_size(image)
        objects = tuple(_object(names, row, size_wh, label_file) for row in rows)
    name = image.relative_to(root).as_posix() if image.is_relative_to(root) else str(image)
    return LabelledImage(Folder(root).image(name), objects)


def _label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` of its path becomes `labels`."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112) in _TRANSPOSED else (width, height)


def _object(names: Mapping[int, str], row: Sequence[float], size_wh: tuple[int, int], path: Path) -> TrueObject:
    class_index, *numbers = row
    if int(class_index) not in names or len(numbers) < 4 or len(numbers) % 2:
        raise RunError(f"{path}: expected a class of data.yaml and a box or an outline, got {row}")
    label, (width, height) = names[int(class_index)], size_wh
    if len(numbers) == 4:
        return TrueObject(label, _box(numbers, width, height))
    ring = tuple((x * width, y * height) for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    return TrueObject(label, bounding_box(ring), [[coordinate for point in ring for coordinate in point]])


def _box(numbers: Sequence[float], width: int, height: int) -> BoxXyxy:
    x, y, w, h = numbers
    return ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
