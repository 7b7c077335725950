"""Typed results of a task, in pixels of the original image.

`is_parsed` is False if a part of the model's text could not be parsed; the list then has the
objects of the other parts. A blank answer, which means that nothing was found, is parsed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PointXy = tuple[float, float]
BoxXyxy = tuple[float, float, float, float]
QuadXy = tuple[PointXy, PointXy, PointXy, PointXy]
Ring = tuple[PointXy, ...]  # closed: the last point is connected to the first
MaskFormat = Literal["polygon", "rle"]


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """A mask of the whole image as COCO's compressed run lengths (column-major)."""

    size_hw: tuple[int, int]
    counts: str


def bounding_box(points_xy: Iterable[PointXy]) -> BoxXyxy | None:
    """Return the smallest box around one or more points, or None if it has no area."""
    xs, ys = zip(*points_xy, strict=True)
    box = (min(xs), min(ys), max(xs), max(ys))
    return box if box[0] < box[2] and box[1] < box[3] else None


class _Located:
    """An object with a score, which may be unknown."""

    __slots__ = ()
    score: float | None

    @property
    def rank(self) -> float:
        """The score by which the object is compared with others; 0 without one."""
        return self.score or 0.0


@dataclass(frozen=True, slots=True)
class Detection(_Located):
    """A box with its label ('' if the task has no labels).

    The score is None if the engine of the model gives no probabilities.
    """

    box: BoxXyxy
    label: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Instance(_Located):
    """A segmented object: `polygons` or `mask`, depending on the request's `mask_format`.

    A point belongs to the object if an odd number of `polygons` encloses it (even-odd rule), so
    holes are rings too.
    """

    box: BoxXyxy
    label: str
    score: float
    polygons: tuple[Ring, ...] | None
    mask: RunLengthMask | None


@dataclass(frozen=True, slots=True)
class TextRegion(_Located):
    """A piece of text with the corners of its quadrilateral, in the order written."""

    quad: QuadXy
    text: str
    score: float

    @property
    def box(self) -> BoxXyxy:
        """The box around the corners; of a line without an area an empty one at the origin."""
        return bounding_box(self.quad) or (0.0, 0.0, 0.0, 0.0)

    @property
    def label(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TextResult:
    """Result of a task that returns text."""

    text: str
    is_parsed: bool

    @property
    def items(self) -> tuple["FoundObject", ...]:
        return ()


@dataclass(frozen=True, slots=True)
class DetectionsResult:
    """Result of a task that returns boxes."""

    detections: tuple[Detection, ...]
    is_parsed: bool

    @property
    def items(self) -> tuple["FoundObject", ...]:
        return self.detections


@dataclass(frozen=True, slots=True)
class InstancesResult:
    """Result of a task that returns masks."""

    instances: tuple[Instance, ...]
    is_parsed: bool

    @property
    def items(self) -> tuple["FoundObject", ...]:
        return self.instances


@dataclass(frozen=True, slots=True)
class TextRegionsResult:
    """Result of a task that returns located text."""

    text_regions: tuple[TextRegion, ...]
    is_parsed: bool

    @property
    def items(self) -> tuple["FoundObject", ...]:
        return self.text_regions


Result = TextResult | DetectionsResult | InstancesResult | TextRegionsResult
FoundObject = Detection | Instance | TextRegion


def with_objects(result: Result, objects: Iterable[FoundObject]) -> Result:
    """Return a result with other objects of its kind; a text stays as it is."""
    if isinstance(result, TextResult):
        return result
    return type(result)(tuple(objects), result.is_parsed)  # type: ignore[arg-type]  # of its kind
