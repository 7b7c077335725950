"""Records in the layout that Ultralytics documents for detection and segmentation (docs.ultralytics.com, datasets).

    dataset.yaml            path, train, val, names
    images/train/….jpg      hard links to the images, or copies on another disk
    labels/train/….txt      a line a box: class x_center y_center width height, or class x1 y1 x2 y2 …; 0 to 1

`val` is `train`: what to hold back is for who trains.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from client.annotate.classes import Box, boxes_of, class_name
from client.annotate.images import ImageFile
from client.annotate.job import AnnotationError
from client.annotate.journal import Record
from client.results import ImageSize, Instance, PointXy, Ring


def check_names(images: Sequence[ImageFile]) -> None:
    """Raise `AnnotationError` where an image's labels would not be found, or would be those of another one too."""
    for image in images:
        if (
            "images" in PurePosixPath(image.name).parent.parts
        ):  # trainers look in `labels` for the last `images` of a path
            raise AnnotationError(f"{image.name}: a folder within must not be called images, rename it")
    counts = Counter(_label_name(image) for image in images)
    for name, count in counts.items():
        if count > 1:
            raise AnnotationError(f"{count} images would share labels/train/{name}: rename all but one")


def write_yolo(out: Path, folder: Path, records: Sequence[Record], classes: Mapping[str, int]) -> Path:
    """Write the layout for the images of `folder` into `out`, and return the path of its dataset.yaml."""
    for record in records:
        _place(folder / record.image.name, out / "images" / "train" / record.image.name)
        labels = out / "labels" / "train" / _label_name(record.image)
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(label_lines(record, classes), encoding="utf-8")
    path = out / "dataset.yaml"
    path.write_text(_dataset_yaml(out, classes), encoding="utf-8")
    return path


def label_lines(record: Record, classes: Mapping[str, int]) -> str:
    """Return the lines of one image; none where nothing was found."""
    image, boxes = record.answer.image, boxes_of(record.answer.result)
    lines = ((classes[class_name(box)], *_numbers(box, image)) for box in boxes)
    return "".join(" ".join(f"{number:.6g}" for number in line) + "\n" for line in lines)


def _numbers(box: Box, image: ImageSize) -> list[float]:
    if isinstance(box, Instance) and box.polygons_xy:
        points = [(x / image.width, y / image.height) for x, y in joined_rings(box.polygons_xy)]
        return [min(1.0, max(0.0, coordinate)) for point in points for coordinate in point]
    x1, y1, x2, y2 = box.box_xyxy
    center_size = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    sides = (image.width, image.height, image.width, image.height)
    return [length / side for length, side in zip(center_size, sides, strict=True)]


def joined_rings(rings: Sequence[Ring]) -> list[PointXy]:
    """Return one ring with the inside of several: lines that are gone both ways, and so enclose nothing, join them."""
    first, *others = rings
    start = first[0]
    joined = list(first)
    for ring in others:
        joined += [start, *ring, ring[0]]
    return [*joined, start] if others else joined


def _label_name(image: ImageFile) -> str:
    return PurePosixPath(image.name).with_suffix(".txt").as_posix()


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _dataset_yaml(out: Path, classes: Mapping[str, int]) -> str:
    """Return the file; a text of JSON is one of YAML."""
    root = json.dumps(str(out.resolve()), ensure_ascii=False)
    names = ", ".join(f"{index}: {json.dumps(name, ensure_ascii=False)}" for name, index in classes.items())
    return f"path: {root}\ntrain: images/train\nval: images/train\nnames: {{{names}}}\n"
