"""Boxes of four tools: CVAT's XML of all images, CreateML's, FiftyOne's and LabelMe's JSON.

CVAT (docs.cvat.ai, "CVAT for image") has edges in pixels, CreateML (Apple, "Building an object
detector data source") centres and sizes. FiftyOne (docs.voxel51.com, FiftyOneDataset) has boxes
[x, y, width, height] in parts of the image: of its fields `ground_truth` is read, or the first; its
masks are not. LabelMe (wkentaro/labelme, `_label_file.py`) has one file for each image, beside it:
rectangles, polygons and circles (centre, point of the edge) are read, and of a mask its box.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any
from xml.etree.ElementTree import Element

from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    class_name,
    read_head,
    read_json,
    read_xml,
    true_size,
    upright_size,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.inputs import files_below
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Record
from diptych_client.geometry import joined_rings
from diptych_client.results import Instance, Item

_MAX_XML_BYTES = 200_000_000  # all images are in one file


def read_cvat(path: Path, selection: Selection) -> Dataset | None:
    """Read all images, in images/ or FiftyOne's data/; return None for another XML file."""
    root = read_xml(path, _MAX_XML_BYTES)
    if root.tag != "annotations":
        return None
    folder = path.parent
    store = selection.store(folder / "images", folder / "data", folder)

    def read(image: Element, place: str) -> LabelledImage:
        name = image.get("name", "")
        objects = selection.objects(f"{place} ({name})", image, _cvat_object)
        return LabelledImage(store.image(name), objects)

    return Dataset(selection.labelled_images(path, root.findall("image"), read), store)


def _cvat_object(element: Element) -> TrueObject:
    label = element.get("label", "")
    if element.tag == "polygon":
        points = [pair.split(",") for pair in element.get("points", "").split(";")]
        return TrueObject.outlined(label, points)
    if element.tag != "box":
        raise ValueError(f"a {element.tag} is neither a box nor a polygon")
    edges = [element.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr")]
    return TrueObject.rotated(label, edges, float(element.get("rotation", 0)))


def read_createml(path: Path, selection: Selection) -> Dataset | None:
    document = selection.json(path)
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, Mapping) or not {"image", "annotations"} <= first.keys():
        return None
    store = selection.store(path.parent)

    def read(entry: Any, place: str) -> LabelledImage:
        objects = selection.objects(place, entry["annotations"], _createml_object)
        return LabelledImage(store.image(entry["image"]), objects)

    return Dataset(selection.labelled_images(path, document, read), store)


def _createml_object(annotation: Any) -> TrueObject:
    x, y, width, height = (annotation["coordinates"][key] for key in ("x", "y", "width", "height"))
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return TrueObject.boxed(annotation["label"], edges)


def read_fiftyone(path: Path, selection: Selection) -> Dataset | None:
    document = selection.json(path)
    samples = document.get("samples") if isinstance(document, Mapping) else None
    if not isinstance(samples, list):
        return None
    store = selection.store(path.parent)

    def read(sample: Any, place: str) -> LabelledImage:
        image = store.image(sample["filepath"])
        fields = []
        for name, value in sample.items():
            if isinstance(value, Mapping) and "detections" in value:
                fields.append(name)
        fields.sort(key=lambda name: name != "ground_truth")
        for name in fields[1:]:
            selection.problems.count(f"field {name:.40} not read")
        if not fields:
            return LabelledImage(image)
        width, height = upright_size(store.path / image.name)

        def read_object(detection: Any) -> TrueObject:
            x, y, dx, dy = map(float, detection["bounding_box"])
            edges = (x * width, y * height, (x + dx) * width, (y + dy) * height)
            return TrueObject.boxed(detection["label"], edges, bool(detection.get("iscrowd")))

        detections = sample[fields[0]]["detections"]
        return LabelledImage(image, selection.objects(place, detections, read_object))

    return Dataset(selection.labelled_images(path, samples, read), store)


_MAX_LABELME_BYTES = 100_000_000  # the image may be within
_MAX_HEAD_BYTES = 100_000


def read_labelme(path: Path, selection: Selection) -> Dataset | None:
    folder = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else files_below(path, ".json")
    names = [name for name in names if path.is_file() or selection.includes(name)]
    names = [name for name in names if _is_labelme(folder / name)]
    if not names:
        return None
    store = selection.store(folder)

    def read(name: str, _place: str) -> LabelledImage:
        try:
            document: Any = read_json(folder / name, _MAX_LABELME_BYTES)
        except RunError as error:
            raise ValueError(error) from error
        image_path = document["imagePath"].replace("\\", "/")
        beside = normpath((PurePosixPath(name).parent / image_path).as_posix())
        if not store.find(beside):  # by its end in another folder of images
            beside = store.find(f"/{image_path}") or PurePosixPath(image_path).name
        image = store.image(beside)
        declared_wh = (document.get("imageWidth"), document.get("imageHeight"))
        size_wh = true_size(store.path / image.name, *declared_wh)

        def read_object(shape: Any) -> TrueObject:
            return _labelme_object(shape).inside(size_wh)

        return LabelledImage(
            image, selection.objects(folder / name, document["shapes"], read_object)
        )

    return Dataset(selection.labelled_images(path, names, read), store)


def _is_labelme(path: Path) -> bool:
    head = read_head(path, _MAX_HEAD_BYTES)
    return b'"shapes"' in head or b'"imageData"' in head


def _labelme_object(shape: Any) -> TrueObject:
    label = class_name(shape["label"])
    kind = shape.get("shape_type") or "polygon"
    points = shape["points"]
    if kind in ("polygon", "rotation"):
        return TrueObject.outlined(label, points)
    if kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind not in ("rectangle", "mask"):
        raise ValueError(f"a {kind} has no box")
    xs, ys = zip(*points, strict=True)
    return TrueObject.boxed(label, (min(xs), min(ys), max(xs), max(ys)))


def write_labelme(export: Export) -> Path:
    return export.write_each("{split}", ".json", _labelme_document)


def _labelme_document(record: Record) -> str:
    document: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(map(_labelme_shape, record.items)),
        "imagePath": PurePosixPath(record.image.name).name,
        "imageData": None,
        "imageHeight": record.answer.image.height,
        "imageWidth": record.answer.image.width,
    }
    return json.dumps(document, indent=1)


def _labelme_shape(item: Item) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box_xyxy
    shape = {"label": item.category, "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
    if isinstance(item, Instance) and item.polygons_xy:
        points = list(map(list, joined_rings(item.polygons_xy)))
        shape |= {"shape_type": "polygon", "points": points}
    return shape | {"group_id": None, "description": "", "flags": {}, "mask": None}
