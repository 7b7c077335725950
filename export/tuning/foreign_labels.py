"""Boxes of YOLO (Ultralytics) and Pascal VOC: their training split, upright pixels.

YOLO   data.yaml: names, train (folder of images, several, or a list of paths); labels/….txt beside
       images/….jpg: `class x_center y_center width height`, or an outline, in parts of the image
VOC    Annotations/….xml, JPEGImages/; ImageSets/Main/train.txt if there is one. Pixels count from 1
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml

from export.checkpoints.errors import TuningError
from export.scenes.truth import LabelledBox
from export.tuning.labels import MALFORMED, ImageFolder, LabelledImage, label_name

_MAX_BYTES = 50_000_000  # a list of a million paths; a label file has kilobytes
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_yolo(path: Path, images: ImageFolder) -> Iterator[LabelledImage]:
    """Yield the images of the split `train`; one without a label file has no objects."""
    try:
        document = yaml.safe_load(_read_text(path))
        listed = document["names"]
        pairs = listed.items() if isinstance(listed, Mapping) else enumerate(listed)
        # aliases in a YAML file can nest a name exponentially
        names = {int(index): name for index, name in pairs if isinstance(name, str | int | float)}
        train = document["train"]
    except (*MALFORMED, yaml.YAMLError) as error:
        raise TuningError(f"{path} is not YOLO's, with `names` and `train`: {error!r}") from error
    for source in train if isinstance(train, list) else [train]:
        for file in _yolo_images(
            path.absolute().parent, str(document.get("path") or "."), str(source)
        ):
            if size_wh := images.size_wh(file):
                yield LabelledImage(file, size_wh, tuple(_yolo_boxes(file, names, size_wh)))


def _yolo_images(folder: Path, root: str, source: str) -> list[Path]:
    """Return the images of a folder or a list. `path` of the yaml may be that of another machine;
    Roboflow's folders are relative to one below.
    """
    tried = [folder / root / source, folder / source, folder / source.removeprefix("../")]
    for path in tried:
        if path.is_dir():
            found = path.rglob("*")
            return sorted(each for each in found if each.suffix.lower() in _IMAGE_SUFFIXES)
        if path.is_file():
            lines = _read_text(path).split("\n")
            return [path.parent / line.strip() for line in lines if line.strip()]
    raise TuningError(f"the images {source} are in none of {', '.join(map(str, tried))}")


def _yolo_boxes(
    image: Path, names: Mapping[int, object], size_wh: tuple[int, int]
) -> Iterator[LabelledBox]:
    before, is_below, below = image.as_posix().rpartition("/images/")
    file = Path(f"{before}/labels/{below}" if is_below else image).with_suffix(".txt")
    lines = _read_text(file).splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            class_index, *parts = map(float, line.split())
            points = np.reshape(parts, (-1, 2)) * size_wh
            label = label_name(names[int(class_index)])
            if len(points) < 2 or not np.isfinite(points).all():
                raise ValueError
            if len(points) == 2:
                center, size = points
                points = np.stack([center - size / 2, center + size / 2])
            x1, y1 = points.min(axis=0).tolist()
            x2, y2 = points.max(axis=0).tolist()
        except MALFORMED as error:
            expected = "expected a class of the yaml and a box or an outline"
            raise TuningError(f"{file}, line {number}: {expected}, got {line!r}") from error
        yield LabelledBox(label, (x1, y1, x2, y2))


def read_voc(folder: Path, images: ImageFolder) -> Iterator[LabelledImage]:
    """Yield the images of the split `train`, or all; objects marked difficult are learnt too."""
    files = sorted((folder / "Annotations").glob("*.xml"))
    listing = folder / "ImageSets" / "Main" / "train.txt"
    if listing.is_file():
        chosen = {line.split()[0] for line in _read_text(listing).splitlines() if line.strip()}
        files = [file for file in files if file.stem in chosen]
    jpeg = folder / "JPEGImages"
    image_folder = images.folder or (jpeg if jpeg.is_dir() else folder / "images")
    for file in files:
        try:
            root = ElementTree.fromstring(_read_text(file))
            boxes = tuple(_voc_box(each) for each in root.findall("object"))
        except (*MALFORMED, ElementTree.ParseError) as error:
            raise TuningError(f"{file} is not Pascal VOC: {error!r}") from error
        image = image_folder / (root.findtext("filename") or f"{file.stem}.jpg")
        if size_wh := images.size_wh(image):
            yield LabelledImage(image, size_wh, boxes)


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise TuningError(f"{path} is larger than {_MAX_BYTES:,} bytes, the most of a label file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TuningError(f"{path} is not text in UTF-8: {error}") from error


def _voc_box(element: ElementTree.Element) -> LabelledBox:
    edges = [element.findtext(f"bndbox/{each}") for each in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = (float(each or "") for each in edges)
    return LabelledBox(label_name(element.findtext("name")), (x1 - 1, y1 - 1, x2, y2))
