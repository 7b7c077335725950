"""A dataset as values: images with the labels that their owner knows; and its files, bounded.

Knows no task, no model, no format. A split is a word of the paths of its files. Boxes are [x1, y1,
x2, y2] in pixels of the upright image; a segmentation is COCO's: polygons, or run lengths.
Strangers write label files: LVIS' largest JSON has 1.1 GB, a crowded XML or a YAML with 20,000
classes below 5 MB.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self, TypeVar
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

from diptych_client.datasets.inputs import MALFORMED, Folder, ImageFile, ImageStore, Problems
from diptych_client.datasets.long_runs import RunError
from diptych_client.geometry import BoxXyxy, PointXy, corners

T = TypeVar("T")
MAX_JSON_BYTES = 4_000_000_000
MAX_LINE_BYTES = 50_000_000
MAX_TEXT_BYTES = 200_000_000  # a list of paths, or the labels of one image
MAX_XML_BYTES = 10_000_000
MAX_YAML_BYTES = 5_000_000
_MAX_XML_DEPTH = 32
_TRANSPOSED = range(5, 9)  # EXIF orientations that swap width and height
_SPLITS = (("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing"))


class NoSuchSplit(RunError):
    """The dataset has no split of this name, or none at all."""


@dataclass(frozen=True, slots=True)
class TrueObject:
    """An object of a class; a crowd may be found any number of times, or not at all."""

    label: str
    box_xyxy: BoxXyxy
    segmentation: Any = None
    is_crowd: bool = False

    @classmethod
    def boxed(cls, label: object, edges: Iterable[Any], is_crowd: bool = False) -> Self:
        return cls(class_name(label), true_box(edges), is_crowd=is_crowd)

    def inside(self, size_wh: tuple[float, float]) -> Self:
        """Return this object; raise `ValueError` if it is wholly outside the image."""
        width, height = size_wh
        x1, y1, x2, y2 = self.box_xyxy
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(
                f"the box {[x1, y1, x2, y2]} is outside the image of {width} x {height}"
            )
        return self

    @classmethod
    def outlined(cls, label: str, points: Any) -> Self:
        """Return the object inside a ring of points; raise `ValueError` without an area."""
        ring = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        if len(ring) < 3:
            raise ValueError(f"an outline needs 3 points, got {len(ring)}")
        box = true_box((*ring.min(axis=0), *ring.max(axis=0)))
        return cls(label, box, [ring.reshape(-1).tolist()])

    @classmethod
    def rotated(
        cls, label: str, edges: Iterable[Any], degrees: float, pivot: PointXy | None = None
    ) -> Self:
        """Return a box as its outline, turned clockwise around a point, or around its centre."""
        x1, y1, x2, y2 = box = true_box(edges)
        if not degrees:
            return cls(label, box)
        center = ((x1 + x2) / 2, (y1 + y2) / 2) if pivot is None else pivot
        sine = math.sin(math.radians(degrees))
        cosine = math.cos(math.radians(degrees))
        offsets = np.array(corners(box)) - center
        return cls.outlined(label, offsets @ [(cosine, sine), (-sine, cosine)] + center)


@dataclass(frozen=True, slots=True)
class TruePhrase:
    """A phrase and the object that it refers to."""

    label: str
    box_xyxy: BoxXyxy | None
    segmentation: Any = None


@dataclass(frozen=True, slots=True)
class TrueQuestion:
    """A question and its accepted answers: of VQA the ten of the annotators, with repetitions."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image and its labels. A kind of label that the dataset lacks is None."""

    image: ImageFile
    objects: tuple[TrueObject, ...] | None = None
    captions: tuple[str, ...] | None = None
    text: str | None = None
    region: BoxXyxy | None = None  # area that `text` describes
    questions: tuple[TrueQuestion, ...] = ()
    phrases: tuple[TruePhrase, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with labels; `classes` are those of the objects, in the dataset's order.

    `labels` are counted by kind: objects, captions, texts, questions, phrases. `ignored` are files,
    labels and fields by consequence, such as "object left out" or ".heic file left out".
    """

    images: Sequence[LabelledImage]
    store: ImageStore
    classes: tuple[str, ...] = ()
    name: str = ""
    note: str = ""  # about the labels, for the reader of a report
    format: str = ""
    split: str = ""  # empty if all images are read
    splits: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a dataset that is read, the folder of its images, and what is left out."""

    images: Path | None
    split: str | None
    problems: Problems
    documents: dict[Path, Any] = field(default_factory=dict)

    def store(self, *folders: Path) -> Folder:
        """Return the folder of the selection, else the first that exists."""
        return Folder(self.images or next(filter(Path.is_dir, folders)))

    def includes(self, path: str) -> bool:
        """Return True for a path with a word of the split: val is valid, but not interval."""
        words: tuple[str, ...] = ((self.split or "").lower(),)
        for names in _SPLITS:
            if words[0] in names:
                words = names
        return self.split is None or _has_word(path, words)

    def json(self, path: Path) -> Any:
        """Return a document that several readers look at."""
        if path not in self.documents:
            self.documents[path] = read_json(path)
        return self.documents[path]

    def labelled_images(
        self, path: Path, entries: Iterable[T], read: Callable[[T, str], LabelledImage]
    ) -> list[LabelledImage]:
        """Return the entries of a label file as images; damaged ones are left out."""
        labelled_images = []
        for number, entry in enumerate(entries, 1):
            place = f"{path}, image {number}"
            with self.problems.leaving_out("image", place):
                labelled_images.append(read(entry, place))
        return labelled_images

    def objects(
        self, place: object, elements: Iterable[T], read: Callable[[T], TrueObject]
    ) -> tuple[TrueObject, ...]:
        """Return the objects of an image; damaged ones are left out."""
        objects = []
        for number, element in enumerate(elements, 1):
            with self.problems.leaving_out("object", f"{place}, object {number}"):
                objects.append(read(element))
        return tuple(objects)


def splits_in(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the known splits of which the paths have a word."""
    text = "\n".join(paths)
    return tuple(names[0] for names in _SPLITS if _has_word(text, names))


def _has_word(path: str, words: Iterable[str]) -> bool:
    pattern = rf"(?<![a-z])({'|'.join(map(re.escape, words))})(?![a-z])"
    return re.search(pattern, path.lower()) is not None


def true_box(edges: Iterable[Any]) -> BoxXyxy:
    """Return the box; raise `ValueError` if it is not finite or empty."""
    x1, y1, x2, y2 = map(float, edges)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"the box {[x1, y1, x2, y2]} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box {[x1, y1, x2, y2]} has no area")
    return (x1, y1, x2, y2)


def class_name(label: object) -> str:
    """Return a label as text; raise `ValueError` for null or a blank one."""
    if label is None or not str(label).strip():
        raise ValueError("the label is missing")
    return str(label)


def true_size(path: Path, width: object, height: object) -> tuple[float, float]:
    """Return the size of an upright image; raise `ValueError` if its labels have another one.

    It is infinite for a file that Pillow cannot open, such as a page of a PDF.
    """
    try:
        size_wh = upright_size(path)
    except ValueError:
        return (math.inf, math.inf)
    if width and height and (width, height) != size_wh:
        actual = " x ".join(map(str, size_wh))
        raise ValueError(f"its size is {width} x {height}, but that of its file {actual}")
    return size_wh


def classes_of(labelled_images: Iterable[LabelledImage]) -> tuple[str, ...]:
    labels = set[str]()
    for labelled in labelled_images:
        labels.update(map(attrgetter("label"), labelled.objects or ()))
    return tuple(sorted(labels))


def label_counts(labelled_images: Iterable[LabelledImage]) -> dict[str, int]:
    """Return the number of labels of each kind that there are."""
    counts = Counter[str]()
    for labelled in labelled_images:
        counts["objects"] += len(labelled.objects or ())
        counts["captions"] += len(labelled.captions or ())
        counts["texts"] += labelled.text is not None
        counts["questions"] += len(labelled.questions)
        counts["phrases"] += len(labelled.phrases)
    return dict(+counts)


def merged(rows: Iterable[LabelledImage]) -> list[LabelledImage]:
    """Return one image for all rows with its name and text."""
    joined: dict[object, LabelledImage] = {}
    for row in rows:
        key = (row.image.name, row.text, row.region)
        if key in joined:
            first = joined[key]
            row = replace(
                row,
                objects=_joined(first.objects, row.objects),
                captions=_joined(first.captions, row.captions),
                questions=first.questions + row.questions,
                phrases=first.phrases + row.phrases,
            )
        joined[key] = row
    return list(joined.values())


def _joined(first: tuple[T, ...] | None, second: tuple[T, ...] | None) -> tuple[T, ...] | None:
    return second if first is None else first + (second or ())


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height as an image is shown; raise `ValueError` for another file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_transposed = image.getexif().get(0x0112) in _TRANSPOSED
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its image cannot be opened ({error})") from error
    return (height, width) if is_transposed else (width, height)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    text = read_text(path, max_bytes)
    with readable_as("JSON", path):
        return json.loads(text)


def read_yaml(path: Path) -> Any:
    text = read_text(path, MAX_YAML_BYTES)
    with readable_as("YAML", path):
        return _LoaderWithoutAliases(text).get_single_data()


def read_xml(path: Path, max_bytes: int = MAX_XML_BYTES) -> ElementTree.Element:
    """Return the root of an XML file without a document type, which could define entities."""
    data = _read(path, max_bytes)  # its first line names the encoding
    with readable_as("XML", path):
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_BoundedTree()))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1; raise `RunError` for a long one."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
            if text := _decoded(path, line).strip():
                yield number, text


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8; raise `RunError` if it is larger than allowed."""
    return _decoded(path, _read(path, max_bytes))


def read_head(path: Path, max_bytes: int) -> bytes:
    """Return the first bytes of a file, which tell its format."""
    with path.open("rb") as file:
        return file.read(max_bytes)


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RunError(f"{path} is larger than {max_bytes:,} bytes, the maximum for its format")
    return data


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        cause = f"{error.reason} at byte {error.start}"
        raise RunError(f"{path} is not text in UTF-8: {cause}") from error


@contextmanager
def readable_as(form: str, path: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise RunError(f"{path} is not readable as {form}: nested too deeply") from error
    except (*MALFORMED, yaml.YAMLError, ElementTree.ParseError) as error:
        cause = " ".join(str(error).split())  # one line
        raise RunError(f"{path} is not readable as {form}: {cause}") from error


class _LoaderWithoutAliases(yaml.SafeLoader):
    """A loader without aliases: ten lines of them can expand to exabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias is not allowed")
        return super().compose_node(parent, index)


class _BoundedTree(ElementTree.TreeBuilder):
    """A tree of bounded depth."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, name: str, _public_id: str | None, _system_id: str | None) -> None:
        raise ValueError(f"a document type ({name}) is not allowed")

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > _MAX_XML_DEPTH:
            raise ValueError(f"elements are nested deeper than {_MAX_XML_DEPTH}")
        return super().start(tag, attributes)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)
