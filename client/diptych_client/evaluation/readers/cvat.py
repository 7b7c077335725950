"""CVAT's XML (docs.cvat.ai, "CVAT for image"): boxes and polygons of each image, in pixels."""

from pathlib import Path
from xml.etree import ElementTree

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    classes_of,
    outlined,
    rotated,
    true_box,
)
from diptych_client.evaluation.foreign_files import read_xml
from diptych_client.inputs import Folder, Problems
from diptych_client.long_runs import RunError

MAX_BYTES = 200_000_000  # all images are in one file


def read_cvat(path: Path, problems: Problems, images: Path | None = None) -> Dataset | None:
    """Read annotations.xml, whose images are in images/; return None for another XML file."""
    root = read_xml(path, MAX_BYTES)
    if root.tag != "annotations":
        return None
    if root.find("track") is not None:
        raise RunError(
            f"{path} has tracks of a video; export the task as `CVAT for images` or COCO"
        )
    beside = path.parent / "images"
    store = Folder(images or (beside if beside.is_dir() else path.parent))
    labelled = []
    for number, image in enumerate(root.findall("image"), 1):
        name = image.get("name", "")
        objects = []
        for element in image:
            with problems.leaving_out("object", f"{path}, image {number} ({name})"):
                objects.append(_object(element))
        labelled.append(LabelledImage(store.image(name), tuple(objects)))
    return Dataset(labelled, store, classes_of(labelled))


def _object(element: ElementTree.Element) -> TrueObject:
    label = element.get("label", "")
    if element.tag == "polygon":
        points = [pair.split(",") for pair in element.get("points", "").split(";")]
        return outlined(label, points)
    if element.tag != "box":
        raise ValueError(f"a {element.tag} is neither a box nor a polygon")
    edges = [element.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr")]
    x1, y1, x2, y2 = true_box(edges, f"[{', '.join(edges)}]")
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    return rotated(label, (x1, y1, x2, y2), float(element.get("rotation", 0)), center)
