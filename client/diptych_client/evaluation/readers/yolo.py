"""Ultralytics' YOLO layout (docs.ultralytics.com, datasets): data.yaml names the classes and the
splits.

A split is a folder of images, a list of folders, or a text file of paths. The labels of
…/images/….jpg are in …/labels/….txt: `class x_center y_center width height`, or `class x1 y1 x2 y2
…`, as parts of the width and the height. All of them are in the folder of data.yaml: its `path` is
followed within it, and is often that of another machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diptych_client.annotate.job import find_images
from diptych_client.evaluation.dataset import (
    Dataset,
    Folder,
    LabelledImage,
    TrueObject,
    path_within,
)
from diptych_client.evaluation.foreign_files import MALFORMED, read_text, read_yaml
from diptych_client.geometry import BoxXyxy, bounding_box
from diptych_client.long_runs import RunError

_SPLITS = ("val", "test", "train")  # tried in this order
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap width and height


def read_yolo(path: Path, split: str | None = None) -> Dataset:
    """Read one split, by default val."""
    document = read_yaml(path)
    if not isinstance(document, dict) or "names" not in document:
        raise RunError(f"{path} is not a YOLO dataset: it has no `names`")
    try:
        return _dataset(path, document, split)
    except MALFORMED as error:
        raise RunError(f"{path} is not a YOLO dataset: {error!r:.200}") from error


def _dataset(path: Path, document: Mapping[str, Any], split: str | None) -> Dataset:
    chosen = split or next((each for each in _SPLITS if document.get(each)), None)
    if chosen is None or not document.get(chosen):
        raise RunError(f"{path} has no split {split or ' or '.join(_SPLITS)}")
    folder = path.parent.absolute()
    names = _class_names(document["names"])
    sources = document[chosen] if isinstance(document[chosen], list) else [document[chosen]]
    root = _root(folder, document.get("path") or "")
    images = [image for source in sources for image in _images(folder, root, source)]
    return Dataset(
        [_labelled(folder, image, names) for image in images], Folder(folder), tuple(names.values())
    )


def _class_names(names: Sequence[str] | Mapping[Any, str]) -> dict[int, str]:
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
    return {int(index): str(name) for index, name in pairs}


def _root(folder: Path, path: object) -> Path:
    """Return the folder to which the splits are relative."""
    try:
        root = path_within(folder, path or ".")
    except RunError:
        return folder
    return root if root.is_dir() else folder


def _images(folder: Path, root: Path, source: str) -> list[Path]:
    """Return the images of a folder or of a text file of paths."""
    if source.startswith("../") and not (root / source).exists():
        # Roboflow writes paths relative to a folder below
        root, source = folder, source.removeprefix("../")
    path = path_within(folder, str(root / source))
    if path.is_dir():
        return [path / image.name for image in find_images(path)]
    if path.is_file():
        lines = (line.strip() for line in read_text(path).splitlines())
        return [path_within(folder, str(path.parent / line)) for line in lines if line]
    raise RunError(
        f"{path} does not exist; the images of a YOLO dataset must be in the folder of its"
        " data.yaml"
    )


def _labelled(folder: Path, image: Path, names: Mapping[int, str]) -> LabelledImage:
    name = image.relative_to(folder)
    label_file = folder / _label_file(name)
    lines = read_text(label_file).splitlines() if label_file.is_file() else []
    rows = [[float(number) for number in line.split()] for line in lines if line.strip()]
    objects: tuple[TrueObject, ...] = ()
    if rows:
        size_wh = _upright_size(image)
        objects = tuple(_object(names, row, size_wh, label_file) for row in rows)
    return LabelledImage(Folder(folder).image(name.as_posix()), objects)


def _label_file(image: Path) -> Path:
    """Return the label file of an image: the last folder `images` of its path in the dataset
    becomes `labels`.
    """
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(0x0112) in _TRANSPOSED else (width, height)


def _object(
    names: Mapping[int, str], row: Sequence[float], size_wh: tuple[int, int], path: Path
) -> TrueObject:
    class_index, *numbers = row
    if int(class_index) not in names or len(numbers) < 4 or len(numbers) % 2:
        raise RunError(f"{path}: expected a class of data.yaml and a box or an outline, got {row}")
    label, (width, height) = names[int(class_index)], size_wh
    if len(numbers) == 4:
        return TrueObject(label, _box(numbers, width, height))
    ring = tuple((x * width, y * height) for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    return TrueObject(
        label, bounding_box(ring), [[coordinate for point in ring for coordinate in point]]
    )


def _box(numbers: Sequence[float], width: int, height: int) -> BoxXyxy:
    x, y, w, h = numbers
    return ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
