"""CVAT's annotations.xml of all images (docs.cvat.ai, "CVAT for image"), with edges in pixels."""

from pathlib import Path
from xml.etree.ElementTree import Element

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    read_xml,
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
        return TrueObject.outlined(label, points)
    if element.tag != "box":
        raise ValueError(f"a {element.tag} is neither a box nor a polygon")
    edges = [element.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr")]
    return TrueObject.rotated(label, edges, float(element.get("rotation", 0)))
