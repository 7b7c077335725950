"""Ultralytics' YOLO layout (docs.ultralytics.com): data.yaml names the classes and the splits.

A split is a folder of images, a list of folders, or a text file of paths. The labels of
…/images/….jpg are in …/labels/….txt: `class x_center y_center width height`, or `class x1 y1 x2 y2
…`, as parts of the width and the height. All of them are in the folder of data.yaml: its `path` is
followed within it, and is often that of another machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from diptych_client.geometry import parse_box
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
    listed = document["names"]
    pairs = listed.items() if isinstance(listed, Mapping) else enumerate(listed)
    names = {int(index): str(name) for index, name in pairs}
    sources = document[chosen] if isinstance(document[chosen], list) else [document[chosen]]
    root = _root(folder, document.get("path") or "")
    labelled = []
    for source in sources:
        labelled += [_labelled(folder, image, names) for image in _images(folder, root, source)]
    return Dataset(labelled, Folder(folder), tuple(names.values()))


def _root(folder: Path, path: object) -> Path:
    """Return the folder to which the splits are relative."""
    try:
        root = path_within(folder, path or ".")
    except RunError:
        return folder
    return root if root.is_dir() else folder


def _images(folder: Path, root: Path, source: str) -> list[Path]:
    """Return the images of a folder or of a text file of paths."""
    path = root / source
    if source.startswith("../") and not path.exists():
        # Roboflow writes paths relative to a folder below
        path = folder / source.removeprefix("../")
    path = path_within(folder, str(path))
    if path.is_dir():
        return [path / image.name for image in find_images(path)]
    if path.is_file():
        lines = (line.strip() for line in read_text(path).splitlines())
        return [path_within(folder, str(path.parent / line)) for line in lines if line]
    rule = "the images of a YOLO dataset must be in the folder of its data.yaml"
    raise RunError(f"{path} does not exist; {rule}")


def _labelled(folder: Path, image: Path, names: Mapping[int, str]) -> LabelledImage:
    """Return an image with its labels: the last folder `images` of its path becomes `labels`."""
    name = image.relative_to(folder)
    before, is_below, below = f"/{name.as_posix()}".rpartition("/images/")
    label_path = f"{before}/labels/{below}" if is_below else below
    label_file = folder / Path(label_path.removeprefix("/")).with_suffix(".txt")
    objects = []
    lines = read_text(label_file).splitlines() if label_file.is_file() else []
    if rows := list(filter(None, map(str.split, lines))):
        with Image.open(image) as opened:
            size_wh = opened.size
            if opened.getexif().get(0x0112) in _TRANSPOSED:
                size_wh = size_wh[::-1]
        for row in rows:
            objects.append(_object(names, list(map(float, row)), size_wh, label_file))
    return LabelledImage(Folder(folder).image(name.as_posix()), tuple(objects))


def _object(
    names: Mapping[int, str], row: Sequence[float], size_wh: tuple[int, int], path: Path
) -> TrueObject:
    class_index, *numbers = row
    if int(class_index) not in names or len(numbers) < 4 or len(numbers) % 2:
        raise RunError(f"{path}: expected a class of data.yaml and a box or an outline, got {row}")
    label = names[int(class_index)]
    points = np.reshape(numbers, (-1, 2)) * size_wh
    if len(points) == 2:
        center, size = points
        return TrueObject(label, parse_box([*(center - size / 2), *(center + size / 2)]))
    x1, y1 = points.min(axis=0)
    x2, y2 = points.max(axis=0)
    return TrueObject(label, parse_box((x1, y1, x2, y2)), [points.reshape(-1).tolist()])
