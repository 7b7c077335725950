"""Pascal VOC: Annotations/….xml for each image, JPEGImages/, splits in ImageSets/Main/….txt.

A box counts pixels from 1 and includes its last ones (VOC2012 development kit, section 3): [xmin -
1, ymin - 1, xmax, ymax] are its edges. Objects marked difficult count neither as found nor as
missed, as in VOC's own evaluation.
"""

from pathlib import Path
from xml.etree import ElementTree

from diptych_client.evaluation.dataset import (
    Dataset,
    Folder,
    LabelledImage,
    TrueObject,
    classes_of,
    path_within,
)
from diptych_client.evaluation.foreign_files import read_text, read_xml
from diptych_client.geometry import parse_box
from diptych_client.long_runs import RunError


def read_voc(path: Path, split: str | None = None) -> Dataset:
    """Read one split, by default all annotations."""
    folders = (path / "JPEGImages", path / "images")
    folder = Folder(next(filter(Path.is_dir, folders), path))
    annotations = path / "Annotations"
    files = sorted(annotations.glob("*.xml"))
    if split is not None:
        listing = path / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            raise RunError(f"{listing} does not exist")
        names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        files = [path_within(annotations, f"{name}.xml") for name in names]
    labelled = [_labelled(folder, file) for file in files]
    return Dataset(labelled, folder, classes_of(labelled))


def _labelled(folder: Folder, file: Path) -> LabelledImage:
    try:
        root = read_xml(file)
        objects = tuple(_object(each) for each in root.findall("object"))
    except (ValueError, OSError) as error:
        raise RunError(f"{file}: not an annotation of Pascal VOC: {error}") from error
    return LabelledImage(folder.image(root.findtext("filename") or f"{file.stem}.jpg"), objects)


def _object(element: ElementTree.Element) -> TrueObject:
    edges = [element.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = parse_box(edge or "" for edge in edges)
    label = element.findtext("name") or ""
    is_difficult = element.findtext("difficult") == "1"
    return TrueObject(label, (x1 - 1, y1 - 1, x2, y2), is_crowd=is_difficult)
