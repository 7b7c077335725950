"""A dataset as values: images with whatever their owner knows about them.

Knows no task, no model, no file format.

Boxes are [x1, y1, x2, y2] in pixels of the upright image; a segmentation is COCO's: polygons, or
run lengths.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych_client.geometry import BoxXyxy, PointXy, parse_box
from diptych_client.inputs import ImageFile, ImageStore
from diptych_client.long_runs import RunError


class NoSuchSplit(RunError):
    """The dataset has no split of this name, or none at all."""


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


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images with labels; `classes` are those of the objects, in the dataset's order."""

    images: Sequence[LabelledImage]
    store: ImageStore
    classes: tuple[str, ...] = ()
    name: str = ""
    note: str = ""  # what a reader should know about the labels


def four_numbers(values: Any, shown: object) -> BoxXyxy:
    """Return four numbers; raise `ValueError` for anything else."""
    try:
        return parse_box(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a box needs 4 numbers, got {shown!r:.100}") from error


def true_box(edges: Iterable[Any], shown: object) -> BoxXyxy:
    """Return the box; raise `ValueError` that names it as `shown` if it is not finite or empty."""
    x1, y1, x2, y2 = four_numbers(edges, shown)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"the box {shown} is not finite")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"the box {shown} has no area")
    return (x1, y1, x2, y2)


def outlined(label: str, points: Any) -> TrueObject:
    """Return the object inside a ring of points; raise `ValueError` if they enclose no area."""
    ring = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(ring) < 3:
        raise ValueError(f"an outline needs 3 points, got {len(ring)}")
    shown = f"around the {len(ring)} points of the outline"
    box = true_box((*ring.min(axis=0), *ring.max(axis=0)), shown)
    return TrueObject(label, box, [ring.reshape(-1).tolist()])


def rotated(label: str, box: BoxXyxy, degrees: float, pivot: PointXy) -> TrueObject:
    """Return a box that is turned clockwise around a point, as its outline."""
    if not degrees:
        return TrueObject(label, box)
    x1, y1, x2, y2 = box
    sine = math.sin(math.radians(degrees))
    cosine = math.cos(math.radians(degrees))
    offsets = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) - pivot
    return outlined(label, offsets @ [(cosine, sine), (-sine, cosine)] + pivot)


def classes_of(labelled: Iterable[LabelledImage]) -> tuple[str, ...]:
    """Return the labels of all objects, sorted."""
    labels = set[str]()
    for image in labelled:
        labels.update(each.label for each in image.objects or ())
    return tuple(sorted(labels))
