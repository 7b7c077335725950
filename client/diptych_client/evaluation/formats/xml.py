"""Pascal VOC and CVAT: boxes, and of CVAT polygons, in XML.

Pascal VOC has one file for each image, in Annotations/ or beside the image. Images are in
JPEGImages/ or images/, or beside the XML; splits in ImageSets/Main/….txt or in folders. A box
counts pixels from 1 and includes its last ones (VOC2012 development kit, section 3): [xmin - 1,
ymin - 1, xmax, ymax] are its edges. Objects marked difficult count neither as found nor as missed,
as in VOC's own evaluation.

CVAT has all images in annotations.xml (docs.cvat.ai, "CVAT for image"), with edges in pixels.
"""

from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    NoSuchSplit,
    TrueObject,
    classes_of,
    outlined,
    read_text,
    read_xml,
    rotated,
    true_box,
)
from diptych_client.inputs import SUFFIXES, Folder, ImageFile, Problems, path_within
from diptych_client.long_runs import RunError

_MAX_CVAT_BYTES = 200_000_000  # all images are in one file


def read_voc(path: Path, split: str | None, problems: Problems) -> Dataset:
    """Read one split, by default all annotations."""
    store = Folder(next(filter(Path.is_dir, (path / "JPEGImages", path / "images")), path))
    annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
    labelled_images = []
    for file in _voc_files(path, annotations, split):
        try:
            root = read_xml(file)
        except (RunError, OSError) as error:
            problems.add(file, str(error).removeprefix(f"{file} "), "image left out")
            continue
        below = PurePosixPath(file.parent.relative_to(annotations).as_posix())
        name = root.findtext("filename") or f"{file.stem}.jpg"
        image = _voc_image(store, below, name, file.stem)
        objects = []
        for number, element in enumerate(root.findall("object"), 1):
            with problems.leaving_out("object", f"{file}, object {number}"):
                objects.append(_voc_object(element))
        labelled_images.append(LabelledImage(image, tuple(objects)))
    return Dataset(labelled_images, store, classes_of(labelled_images))


def _voc_files(path: Path, annotations: Path, split: str | None) -> list[Path]:
    listing = path / "ImageSets" / "Main" / f"{split}.txt"
    if split is not None and listing.is_file():
        names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        return [path_within(annotations, f"{name}.xml") for name in names]
    files = []
    for file in sorted(annotations.rglob("*.xml")):
        if split in (None, *file.relative_to(annotations).parts):
            files.append(file)
    if not files:
        raise NoSuchSplit(f"{listing} does not exist, and no folder {split} has annotations")
    return files


def _voc_image(store: Folder, below: PurePosixPath, name: str, stem: str) -> ImageFile:
    """Return the image of this name, or of the XML file's; a missing one fails when it is read."""
    name = name.rpartition("\\")[2]
    for file_name in (name, *(f"{stem}{suffix}" for suffix in sorted(SUFFIXES))):
        for candidate in ((below / file_name).as_posix(), file_name):
            if path_within(store.path, candidate).is_file():
                return store.image(candidate)
    return store.image(name)


def _voc_object(element: ElementTree.Element) -> TrueObject:
    edges = [element.findtext(f"bndbox/{edge}") or "" for edge in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = map(float, edges)
    box = true_box((x1 - 1, y1 - 1, x2, y2), f"[{', '.join(edges)}]")
    label = element.findtext("name")
    if not label:
        raise ValueError("the object has no name")
    return TrueObject(label, box, is_crowd=element.findtext("difficult") == "1")


def read_cvat(path: Path, problems: Problems, images: Path | None = None) -> Dataset | None:
    """Read annotations.xml, whose images are in images/; return None for another XML file."""
    root = read_xml(path, _MAX_CVAT_BYTES)
    if root.tag != "annotations":
        return None
    if root.find("track") is not None:
        raise RunError(
            f"{path} has tracks of a video; export the task as `CVAT for images` or COCO"
        )
    beside = path.parent / "images"
    store = Folder(images or (beside if beside.is_dir() else path.parent))
    labelled_images = []
    for number, image in enumerate(root.findall("image"), 1):
        name = image.get("name", "")
        objects = []
        for element in image:
            with problems.leaving_out("object", f"{path}, image {number} ({name})"):
                objects.append(_cvat_object(element))
        labelled_images.append(LabelledImage(store.image(name), tuple(objects)))
    return Dataset(labelled_images, store, classes_of(labelled_images))


def _cvat_object(element: ElementTree.Element) -> TrueObject:
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
