"""What the service answers, as values: equal however they travelled.

Boxes `[x1, y1, x2, y2]`, polygons and quads are in pixels of the original, upright image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from client.errors import ErrorDetail

if TYPE_CHECKING:
    import supervision

PointXy = tuple[float, float]
BoxXyxy = tuple[float, float, float, float]
Ring = tuple[PointXy, ...]


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """COCO's compressed run lengths of a mask of the whole image."""

    size_hw: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class Detection:
    """A box; `label` is empty where the task gives none."""

    box_xyxy: BoxXyxy
    label: str
    score: float  # exp of the mean log-probability of the tokens that wrote it


@dataclass(frozen=True, slots=True)
class Instance:
    """A segmented object, with polygons or a mask as `mask_format` asked; inside is where an odd number encloses."""

    box_xyxy: BoxXyxy
    label: str
    score: float
    polygons_xy: tuple[Ring, ...] | None = None
    mask: RunLengthMask | None = None


@dataclass(frozen=True, slots=True)
class TextRegion:
    """A piece of text and its four corners."""

    quad_xy: tuple[PointXy, PointXy, PointXy, PointXy]
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class TextResult:
    """What a task answers that answers with text."""

    text: str


@dataclass(frozen=True, slots=True)
class DetectionsResult:
    """What a task answers that answers with boxes."""

    detections: tuple[Detection, ...]


@dataclass(frozen=True, slots=True)
class InstancesResult:
    """What a task answers that answers with masks."""

    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class TextRegionsResult:
    """What a task answers that answers with text and its place."""

    text_regions: tuple[TextRegion, ...]


Item = Detection | Instance | TextRegion
Result = TextResult | DetectionsResult | InstancesResult | TextRegionsResult


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Size of the upright image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went in the service, milliseconds."""

    preprocess: float
    encode: float
    prefill: float
    decode: float
    postprocess: float
    queue: float
    total: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer."""

    id: str
    model: str
    task: str
    result: Result
    raw_text: str
    finish_reason: Literal["stop", "length"]
    image: ImageSize
    usage: Usage
    vision_cache: Literal["hit", "miss", "joined"]
    timings_ms: Timings

    def to_supervision(self) -> "supervision.Detections":
        """Return the boxes, and masks where there are, as supervision's; raise `ValueError` for a text.

        `class_id` counts the labels of this answer in order of their first appearance.
        """
        from client.to_supervision import detections_of  # supervision is wanted only here

        return detections_of(self.result, self.image)


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """The place of a model in a comparison that gave no answer."""

    model: str
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of several models to one image and one task, in catalog order."""

    id: str
    task: str
    image: ImageSize
    answers: tuple[Answer | ModelFailure, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A served model, with its row of the comparison table."""

    id: str
    family: str
    organization: str
    category: str
    modality: str
    release_date: str
    context_window: int
    parameters: int
    license: str
    tasks: tuple[str, ...]
    features: tuple[str, ...]
    resolution: int
    precision: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task: the key of its result, the JSON Schema of its parameters, and the models that offer it."""

    id: str
    description: str
    result: str
    parameters: Mapping[str, object]
    models: tuple[str, ...]


def items_of(result: Result) -> tuple[Item, ...]:
    """Return what a result has in the image; nothing where it is a text."""
    match result:
        case DetectionsResult(items) | InstancesResult(items) | TextRegionsResult(items):
            return items
        case TextResult():
            return ()


def label_of(item: Item) -> str:
    """Return what an item is called: its label, or its text."""
    return item.text if isinstance(item, TextRegion) else item.label
