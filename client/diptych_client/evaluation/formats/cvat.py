"""CVAT's annotations.xml of all images (docs.cvat.ai, "CVAT for image"), with edges in pixels."""

from pathlib import Path
from xml.etree.ElementTree import Element

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    outlined,
    read_xml,
    rotated,
    true_box,
)

_MAX_BYTES = 200_000_000  # all images are in one file


def read_cvat(path: Path, selection: Selection) -> Dataset | None:
    """Read all images, in images/ or FiftyOne's data/; return None for another XML file."""
    root = read_xml(path, _MAX_BYTES)
    if root.tag != "annotations":
        return None
    folder = path.parent
    store = selection.store(folder / "images", folder / "data", folder)

    def read(image: Element, place: str) -> LabelledImage:
        name = image.get("name", "")
        objects = selection.objects(f"{place} ({name})", image, _object)
        return LabelledImage(store.image(name), objects)

    return Dataset(selection.labelled_images(path, root.findall("image"), read), store)


def _object(element: Element) -> TrueObject:
    label = element.get("label", "")
    if element.tag == "polygon":
        points = [pair.split(",") for pair in element.get("points", "").split(";")]
        return outlined(label, points)
    if element.tag != "box":
        raise ValueError(f"a {element.tag} is neither a box nor a polygon")
    x1, y1, x2, y2 = true_box(element.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr"))
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    return rotated(label, (x1, y1, x2, y2), float(element.get("rotation", 0)), center)
