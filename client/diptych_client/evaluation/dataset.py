"""A dataset as values: images with whatever their owner knows about them.

Knows no task, no model, no file format.

Boxes are [x1, y1, x2, y2] in pixels of the upright image; a segmentation is COCO's: polygons, or
run lengths.
"""

import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from diptych_client.annotate.job import ImageFile
from diptych_client.geometry import BoxXyxy
from diptych_client.long_runs import RunError
from diptych_client.requests import read_image_file


@dataclass(frozen=True, slots=True)
class TrueObject:
    """An object of a class; a crowd may be found any number of times, or not at all."""

    label: str
    box_xyxy: BoxXyxy
    segmentation: Any = None
    area: float | None = None  # None: that of the box
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class TruePhrase:
    """A phrase and the object that it refers to."""

    phrase: str
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


class ImageStore(Protocol):
    """Where the image files are."""

    def read(self, image: ImageFile) -> bytes:
        """Return the file of an image; raise `OSError` if it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """Images as files of a folder."""

    path: Path

    def read(self, image: ImageFile) -> bytes:
        return read_image_file(self.path / image.name)

    def image(self, name: str) -> ImageFile:
        """Return an image by its path in the folder; a missing one fails when it is read."""
        path = path_within(self.path, name)
        if not path.exists():
            return ImageFile(name, 0, 0)
        stat = path.stat()
        return ImageFile(name, stat.st_size, stat.st_mtime_ns)


def path_within(folder: Path, name: object) -> Path:
    """Return the path of a file that a dataset names.

    Raise `RunError` if the name leaves the folder.

    The text decides: a folder of images is often a link to another disk, which its owner made.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RunError(f"{folder}: a file name must be text without NUL, got {name!r:.200}")
    path = Path(os.path.abspath(folder / name))
    if not path.is_relative_to(os.path.abspath(folder)):
        raise RunError(
            f"{folder}: the file name {name!r:.200} leads outside this folder; it must be a path"
            " within it"
        )
    return path


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with labels; `classes` are those of the objects, in the dataset's order."""

    images: Sequence[LabelledImage]
    store: ImageStore
    classes: tuple[str, ...] = ()
    name: str = ""


def classes_of(labelled: Iterable[LabelledImage]) -> tuple[str, ...]:
    """Return the labels of all objects, sorted."""
    labels = set[str]()
    for image in labelled:
        labels.update(each.label for each in image.objects or ())
    return tuple(sorted(labels))
