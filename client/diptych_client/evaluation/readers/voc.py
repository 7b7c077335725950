"""Pascal VOC: one XML file for each image, in Annotations/ or beside the image.

Images are in JPEGImages/ or images/, or beside the XML; splits in ImageSets/Main/….txt or in
folders. A box counts pixels from 1 and includes its last ones (VOC2012 development kit, section 3):
[xmin - 1, ymin - 1, xmax, ymax] are its edges. Objects marked difficult count neither as found nor
as missed, as in VOC's own evaluation.
"""

from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    NoSuchSplit,
    TrueObject,
    classes_of,
    true_box,
)
from diptych_client.evaluation.foreign_files import read_text, read_xml
from diptych_client.inputs import Folder, ImageFile, Problems
from diptych_client.inputs.files import SUFFIXES, path_within
from diptych_client.long_runs import RunError


def read_voc(path: Path, split: str | None, problems: Problems) -> Dataset:
    """Read one split, by default all annotations."""
    store = Folder(next(filter(Path.is_dir, (path / "JPEGImages", path / "images")), path))
    annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
    labelled = []
    for file in _files(path, annotations, split):
        try:
            root = read_xml(file)
        except (RunError, OSError) as error:
            problems.add(file, str(error).removeprefix(f"{file} "), "image left out")
            continue
        below = PurePosixPath(file.parent.relative_to(annotations).as_posix())
        image = _image(store, below, root.findtext("filename") or f"{file.stem}.jpg", file.stem)
        objects = []
        for number, element in enumerate(root.findall("object"), 1):
            with problems.leaving_out("object", f"{file}, object {number}"):
                objects.append(_object(element))
        labelled.append(LabelledImage(image, tuple(objects)))
    return Dataset(labelled, store, classes_of(labelled))


def _files(path: Path, annotations: Path, split: str | None) -> list[Path]:
    listing = path / "ImageSets" / "Main" / f"{split}.txt"
    if split is not None and listing.is_file():
        names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        return [path_within(annotations, f"{name}.xml") for name in names]
    files = sorted(annotations.rglob("*.xml"))
    found = [file for file in files if split in (None, *file.relative_to(annotations).parts)]
    if not found:
        raise NoSuchSplit(f"{listing} does not exist, and no folder {split} has annotations")
    return found


def _image(store: Folder, below: PurePosixPath, name: str, stem: str) -> ImageFile:
    """Return the image of this name, or of the XML file's; a missing one fails when it is read."""
    name = name.rpartition("\\")[2]
    for each in (name, *(f"{stem}{suffix}" for suffix in sorted(SUFFIXES))):
        for candidate in ((below / each).as_posix(), each):
            if path_within(store.path, candidate).is_file():
                return store.image(candidate)
    return store.image(name)


def _object(element: ElementTree.Element) -> TrueObject:
    edges = [element.findtext(f"bndbox/{edge}") or "" for edge in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = map(float, edges)
    box = true_box((x1 - 1, y1 - 1, x2, y2), f"[{', '.join(edges)}]")
    label = element.findtext("name")
    if not label:
        raise ValueError("the object has no name")
    return TrueObject(label, box, is_crowd=element.findtext("difficult") == "1")
