"""Answers of the service as values, and those as values of other libraries.

The same over REST and gRPC, so they compare equal. Boxes `[x1, y1, x2, y2]`, polygons and quads are
in pixels of the original, upright image. supervision and FiftyOne are optional: a method imports
its library.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from diptych_client.errors import ErrorDetail
from diptych_client.geometry import (
    BoxXyxy,
    ImageSize,
    Mask,
    QuadXy,
    Ring,
    RunLengthMask,
    bounding_box,
    polygons_mask,
    run_length_mask,
    uncompressed_run_lengths,
)
from diptych_client.json_values import to_json

if TYPE_CHECKING:
    import supervision

MIN_FAMILIARITY = 0.01  # of an image that calibrations hold for
UNNAMED = "object"  # class of boxes without a label
MAX_CLASSES = 100_000  # that this process numbers
_class_ids: dict[str, int] = {}
_class_ids_lock = Lock()

ViewXyxy = tuple[int, int, int, int]


class _Located:
    """An object with a label and a score, which may be unknown."""

    __slots__ = ()
    label: str
    score: float | None

    @property
    def rank(self) -> float:
        """The score by which the object is compared with others; 0 without one."""
        return self.score or 0.0

    @property
    def category(self) -> str:
        """The class of the object in a dataset."""
        return self.label or UNNAMED


@dataclass(frozen=True, slots=True)
class Detection(_Located):
    """Box of an object; `label` is empty for tasks without labels."""

    box_xyxy: BoxXyxy
    label: str
    # ranks the boxes of one model; a probability if the answer is calibrated; None if the model's
    # engine gives no probabilities
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Instance(_Located):
    """Segmented object, with polygons or a run-length mask as `mask_format` of the request says."""

    box_xyxy: BoxXyxy
    label: str
    score: float
    polygons_xy: tuple[Ring, ...] | None = None
    mask: RunLengthMask | None = None

    def to_mask(self, image: ImageSize) -> Mask:
        """Return the mask (H, W) of the whole image."""
        if self.mask is None:
            return polygons_mask(self.polygons_xy or (), image)
        return run_length_mask(self.mask)


@dataclass(frozen=True, slots=True)
class TextRegion:
    """Recognized text and its four corners."""

    quad_xy: QuadXy
    text: str
    score: float

    @property
    def rank(self) -> float:
        return self.score

    @property
    def label(self) -> str:
        return self.text

    @property
    def category(self) -> str:
        """The class in a dataset: text regions are of one."""
        return "text"

    @property
    def box_xyxy(self) -> BoxXyxy:
        """The box around the corners."""
        return bounding_box(self.quad_xy)


@dataclass(frozen=True, slots=True)
class TextResult:
    """Result of captioning, `ocr`, `region_description` and `visual_question_answering`."""

    text: str

    @property
    def items(self) -> tuple["Item", ...]:
        return ()


@dataclass(frozen=True, slots=True)
class DetectionsResult:
    """Result of detection, grounding, region proposal and dense captioning."""

    detections: tuple[Detection, ...]

    @property
    def items(self) -> tuple["Item", ...]:
        return self.detections

    @property
    def text(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class InstancesResult:
    """Result of `instance_segmentation`."""

    instances: tuple[Instance, ...]

    @property
    def items(self) -> tuple["Item", ...]:
        return self.instances

    @property
    def text(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class TextRegionsResult:
    """Result of `ocr_with_regions`."""

    text_regions: tuple[TextRegion, ...]

    @property
    def items(self) -> tuple["Item", ...]:
        return self.text_regions

    @property
    def text(self) -> str:
        """The texts of the regions, each a line."""
        return "\n".join(region.text for region in self.text_regions)


Item = Detection | Instance | TextRegion
Result = TextResult | DetectionsResult | InstancesResult | TextRegionsResult


def score_text(item: Item) -> str:
    """Return the score of an object in hundredths, or a dash."""
    return "–" if item.score is None else f"{item.score:.2f}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Number of tokens of one answer."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int
    # generated where the model preferred a token that `constrained` forbids
    constrained_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Time spent in each stage in the service, in milliseconds."""

    preprocess: float
    encode: float
    prefill: float
    decode: float
    postprocess: float
    queue: float
    total: float


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of the image that were asked about besides the whole image."""

    rows: int
    columns: int
    asked: int
    skipped: int  # flat
    merged: int  # objects that another view found too, or a part of


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The proof about the objects of an answer, and how many it left out."""

    min_precision: float
    confidence: float
    min_score: float
    max_labels: int  # an image with more such objects has none in its answer
    images: int  # labelled ones, which prove it
    left_out: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of one model."""

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
    calibrated: bool = False  # scores are calibrated probabilities
    labels: tuple[str, ...] | None = None  # labels or phrases as the service understood them
    tiles: Tiles | None = None  # set if `tiles` was asked for
    guarantee: Guarantee | None = None  # set if `min_precision` was asked for
    # p-value that the image is like those of the calibration; null in JSON if it is unknown
    familiarity: float | None = field(default_factory=lambda: None)
    image_embedding: str | None = None  # base64 of little-endian float32

    @property
    def is_unfamiliar(self) -> bool:
        """True for an image that is unlike those of the model's calibration."""
        return self.familiarity is not None and self.familiarity < MIN_FAMILIARITY

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of REST."""
        document: dict[str, Any] = to_json(self)
        return document

    def to_supervision(self, classes: Sequence[str] | None = None) -> "supervision.Detections":
        """Return boxes, scores, labels and, if present, masks and quads, in `data["xyxyxyxy"]`.

        A text is `metadata["text"]`, without a box. Class ids are those of `class_ids`.
        """
        import supervision

        items = self.result.items
        numbers = class_ids((item.category for item in items), classes)
        detections = supervision.Detections(
            xyxy=np.array([item.box_xyxy for item in items], dtype=np.float32).reshape(-1, 4),
            confidence=np.array([item.score for item in items], dtype=np.float32),
            class_id=np.array([numbers[item.category] for item in items], dtype=int),
            data={"class_name": np.array([item.label for item in items], dtype=str)},
        )
        match self.result:
            case InstancesResult(instances):
                masks = [instance.to_mask(self.image) for instance in instances]
                shape = (len(masks), self.image.height, self.image.width)
                detections.mask = np.array(masks, dtype=np.bool_).reshape(shape)
            case TextRegionsResult(regions):
                quads = [region.quad_xy for region in regions]
                detections.data["xyxyxyxy"] = np.array(quads, dtype=np.float32)
            case TextResult(text):
                detections.metadata["text"] = text
        return detections

    def to_fiftyone(self) -> Any:  # fiftyone has no types
        """Return `Detections`, instances with masks, `Polylines` of text regions, or of a text a
        `Classification`.

        Coordinates are relative to the image. A mask covers its box, widened to whole pixels.
        """
        import fiftyone.core.labels as fol

        width, height = size_wh = (self.image.width, self.image.height)
        if isinstance(self.result, TextResult):
            return fol.Classification(label=self.result.text)
        labels = []
        for item in self.result.items:
            common: dict[str, Any] = {"label": item.label, "confidence": item.score}
            if isinstance(item, TextRegion):
                points = (np.array(item.quad_xy) / size_wh).tolist()
                labels.append(fol.Polyline(points=[points], closed=True, **common))
                continue
            x1, y1, x2, y2 = item.box_xyxy
            if isinstance(item, Instance):
                x1, y1 = np.clip(np.floor((x1, y1)), 0, (width - 1, height - 1)).astype(int)
                x2, y2 = np.clip(np.ceil((x2, y2)), (x1 + 1, y1 + 1), size_wh).astype(int)
                common["mask"] = item.to_mask(self.image)[y1:y2, x1:x2]
            box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
            labels.append(fol.Detection(bounding_box=list(map(float, box)), **common))
        if isinstance(self.result, TextRegionsResult):
            return fol.Polylines(polylines=labels)
        return fol.Detections(detections=labels)

    def to_coco(
        self, file_name: str = "", image_id: int = 1, classes: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return a document of COCO about this image; a text is its caption.

        Ids of categories are those of `class_ids`, from 1.
        """
        numbers = class_ids((item.category for item in self.result.items), classes)
        return coco_document([(image_id, file_name, self)], numbers)


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """Error of one model in a comparison, in place of its answer."""

    model: str
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers of several models to the same image and task, in catalog order."""

    id: str
    task: str
    image: ImageSize
    answers: tuple[Answer | ModelFailure, ...]


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """One model's answer in a step, or its error."""

    outcome: Answer | ModelFailure
    of: int | None = None  # index among the objects of the step that `each` names
    view_xyxy: ViewXyxy | None = None  # the crop, if any; boxes are in pixels of the whole image


@dataclass(frozen=True, slots=True)
class StepAnswers:
    """The answers of a step: about the object with the best score first."""

    id: str
    task: str
    truncated: bool  # more objects than `max_each` or the service allows
    answers: tuple[StepAnswer, ...]

    def of(self, index: int | None = None) -> Iterator[Answer]:
        """Yield the answers about an object, without failures."""
        for answer in self.answers:
            if answer.of == index and isinstance(answer.outcome, Answer):
                yield answer.outcome


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answers of all steps, in the order of the request."""

    id: str
    image: ImageSize
    steps: tuple[StepAnswers, ...]

    def step(self, step_id: str) -> StepAnswers:
        """Return the step of an id; raise `KeyError`."""
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)


@dataclass(frozen=True, slots=True)
class Model:
    """A served model and its properties."""

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
    checkpoint: str  # sha256 over the files of the checkpoint
    calibrated_tasks: tuple[str, ...]
    adapter_of: str | None = None  # id of the base of a LoRA adapter
    calibration: str = ""  # sha256 over the calibrations of all tasks


@dataclass(frozen=True, slots=True)
class Task:
    """A task, the key of its result, its parameters' JSON Schema, and the models with it."""

    id: str
    description: str
    result: str
    parameters: Mapping[str, object]
    models: tuple[str, ...]


def class_ids(labels: Iterable[str], classes: Sequence[str] | None = None) -> dict[str, int]:
    """Return the ids of labels: their indices in `classes`, else in order of first appearance.

    The latter hold for all answers of this process. Raise `ValueError` for a label without an id.
    """
    if classes is not None:
        numbers = {name: index for index, name in enumerate(classes)}
        if unknown := set(labels) - numbers.keys():
            raise ValueError(f"classes are {', '.join(numbers)}, without {', '.join(unknown)}")
        return numbers
    numbers = {}
    with _class_ids_lock:
        for label in labels:
            if label not in _class_ids and len(_class_ids) == MAX_CLASSES:
                raise ValueError(f"more than {MAX_CLASSES} labels: give the classes that count")
            numbers[label] = _class_ids.setdefault(label, len(_class_ids))
    return numbers


def coco_document(
    images: Iterable[tuple[int, str, Answer]], class_indices: Mapping[str, int]
) -> dict[str, Any]:
    """Return a document of COCO about images with ids and file names; ids count from 1."""
    numbers = {name: index + 1 for name, index in class_indices.items()}
    document: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    for name, number in numbers.items():
        document["categories"].append({"id": number, "name": name})
    annotations: list[dict[str, Any]] = document["annotations"]
    for image_id, file_name, answer in images:
        size = {"width": answer.image.width, "height": answer.image.height}
        document["images"].append({"id": image_id, "file_name": file_name, **size})
        shapes = [{"caption": answer.result.text}] if isinstance(answer.result, TextResult) else []
        for item in answer.result.items:
            category_id = numbers[item.category]
            shapes.append({"category_id": category_id} | coco_shape(item, answer.image))
        for shape in shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | shape)
    return document


def coco_shape(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return box, area and segmentation: polygons, or run lengths where their union differs."""
    x1, y1, x2, y2 = item.box_xyxy
    shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": item.score, "iscrowd": 0}
    match item:
        case TextRegion():
            corners = list(chain.from_iterable(item.quad_xy))
            area = float(polygons_mask([item.quad_xy], image).sum())
            return shape | {"area": area, "segmentation": [corners], "text": item.text}
        case Detection():
            return shape | {"area": (x2 - x1) * (y2 - y1), "segmentation": []}
        case Instance():
            mask = item.to_mask(image)
            rings = item.polygons_xy or ()
            parts = [polygons_mask([ring], image) for ring in rings]
            segmentation: Any = [list(chain.from_iterable(ring)) for ring in rings]
            if not rings or not np.array_equal(mask, np.any(parts, axis=0)):
                segmentation = {"size": list(mask.shape), "counts": uncompressed_run_lengths(mask)}
            return shape | {"area": int(mask.sum()), "segmentation": segmentation}
