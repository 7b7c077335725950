"""Boxes of three tools: CVAT's XML of all images, CreateML's and FiftyOne's JSON.

CVAT (docs.cvat.ai, "CVAT for image") has edges in pixels, CreateML (Apple, "Building an object
detector data source") centres and sizes. FiftyOne (docs.voxel51.com, FiftyOneDataset) has boxes
[x, y, width, height] in parts of the image: of its fields `ground_truth` is read, or the first; its
masks are not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    read_xml,
    upright_size,
)

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
