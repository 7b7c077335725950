"""Pascal VOC (VOC2012 development kit, section 3): one XML file for each image.

It is in Annotations/ or beside the image, in JPEGImages/, images/ or data/ (FiftyOne); splits are
in ImageSets/Main/….txt or in folders. A box counts pixels from 1 and includes its last ones:
[xmin - 1, ymin - 1, xmax, ymax] are its edges. Objects marked difficult count neither as found nor
as missed, as in VOC's own evaluation.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from diptych_client.conversion import SUFFIXES
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    read_head,
    read_text,
    read_xml,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.inputs import Folder, ImageFile, files_below, path_within
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Record

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_PRESENCE = re.compile(r" +-?[01]$")  # after a name in the list of a class
_ROOT = re.compile(rb"<annotation[\s>]")
_MAX_HEAD_BYTES = 10_000


def read_voc(path: Path, selection: Selection) -> Dataset | None:
    """Read one split, by default all annotations."""
    path = Path(os.path.abspath(path))
    store = selection.store(path / "JPEGImages", path / "images", path / "data", path)
    annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
    lists = sorted(path.glob("ImageSets/Main/*.txt"))
    files = _files(lists, annotations, selection)
    if annotations == path:
        files = list(filter(_is_voc, files))
    if not files:
        return None
    labelled_images = []
    for file in files:
        try:
            root = read_xml(file)
        except (RunError, OSError) as error:
            finding = str(error).removeprefix(f"{file} ")
            selection.problems.add(file, finding, "image left out")
            continue
        below = PurePosixPath(file.parent.relative_to(annotations).as_posix())
        name = root.findtext("filename") or f"{file.stem}.jpg"
        image = _image(store, below, name, file.stem)
        objects = selection.objects(file, root.findall("object"), _object)
        labelled_images.append(LabelledImage(image, objects))
    splits = tuple(list_path.stem for list_path in lists)
    return Dataset(labelled_images, store, splits=splits)


def _is_voc(path: Path) -> bool:
    head = read_head(path, _MAX_HEAD_BYTES).replace(b"\0", b"")  # of UTF-16
    return _ROOT.search(head) is not None


def _files(lists: list[Path], annotations: Path, selection: Selection) -> list[Path]:
    """Return the files of the list of a split, else those with the split in their path."""
    for list_path in lists if selection.split is not None else ():
        if list_path.stem == selection.split or selection.includes(list_path.stem):
            lines = filter(str.strip, read_text(list_path).splitlines())
            names = [_PRESENCE.sub("", line.strip()) for line in lines]
            return [path_within(annotations, f"{name}.xml") for name in names]
    included = filter(selection.includes, files_below(annotations, ".xml"))
    return list(map(annotations.joinpath, included))


def _image(store: Folder, below: PurePosixPath, name: str, stem: str) -> ImageFile:
    """Return the image of this name, or of the XML file's; a missing one fails when it is read."""
    for file_name in (name, *(f"{stem}{suffix}" for suffix in sorted(SUFFIXES))):
        for candidate in ((below / file_name).as_posix(), file_name):
            if store.find(candidate):
                return store.image(candidate)
        path_within(store.path, name)
    return store.image(name)


def _object(element: Element) -> TrueObject:
    edges = [element.findtext(f"bndbox/{edge}") or "" for edge in _EDGES]
    x1, y1, x2, y2 = map(float, edges)
    label = element.findtext("name")
    if not label:
        raise ValueError("the object has no name")
    is_difficult = element.findtext("difficult") == "1"
    return TrueObject.boxed(label, (x1 - 1, y1 - 1, x2, y2), is_difficult)


def write_voc(export: Export) -> Path:
    """Write Annotations, JPEGImages and ImageSets; edges are whole pixels."""
    export.write_each("Annotations", ".xml", _document)
    return export.write_splits("ImageSets/Main/{split}.txt", "", _stems)


def _stems(records: Sequence[Record]) -> str:
    names = (PurePosixPath(record.image.name).with_suffix("").as_posix() for record in records)
    return "".join(map("{}\n".format, names))


def _document(record: Record) -> str:
    root = Element("annotation")
    SubElement(root, "filename").text = PurePosixPath(record.image.name).name
    size = SubElement(root, "size")
    SubElement(size, "width").text = str(record.answer.image.width)
    SubElement(size, "height").text = str(record.answer.image.height)
    SubElement(size, "depth").text = "3"
    for item in record.items:
        element = SubElement(root, "object")
        SubElement(element, "name").text = item.category
        SubElement(element, "difficult").text = "0"
        box = SubElement(element, "bndbox")
        x1, y1, x2, y2 = map(round, item.box_xyxy)
        edges = (x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1))
        for tag, number in zip(_EDGES, edges, strict=True):
            SubElement(box, tag).text = str(number)
    indent(root)
    return tostring(root, encoding="unicode")
