"""Answers of the service as values, and those as values of other libraries.

The same over REST and gRPC, so they compare equal. Boxes `[x1, y1, x2, y2]`, polygons and quads are
in pixels of the original, upright image. supervision, FiftyOne and pandas are optional: a method
imports its library, and raises `ImportError` if it is not installed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych_client.errors import ErrorDetail
from diptych_client.geometry import (
    BoxXyxy,
    ImageSize,
    Mask,
    PointXy,
    QuadXy,
    Ring,
    RunLengthMask,
    bounding_box,
    polygons_mask,
    run_length_mask,
    uncompressed_run_lengths,
)

if TYPE_CHECKING:
    import supervision

UNNAMED = "object"  # class of boxes without a label
_COLUMNS = ("model", "task", "label", "score", "x1", "y1", "x2", "y2", "shape")

ViewXyxy = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Detection:
    """Box of an object; `label` is empty for tasks without labels."""

    box_xyxy: BoxXyxy
    label: str
    score: float  # ranks the boxes of one model; a probability if the answer is calibrated


@dataclass(frozen=True, slots=True)
class Instance:
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


@dataclass(frozen=True, slots=True)
class TextResult:
    """Result of captioning, `ocr`, `region_description` and `visual_question_answering`."""

    text: str


@dataclass(frozen=True, slots=True)
class DetectionsResult:
    """Result of detection, grounding, region proposal and dense captioning."""

    detections: tuple[Detection, ...]


@dataclass(frozen=True, slots=True)
class InstancesResult:
    """Result of `instance_segmentation`."""

    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class TextRegionsResult:
    """Result of `ocr_with_regions`."""

    text_regions: tuple[TextRegion, ...]


Item = Detection | Instance | TextRegion
Result = TextResult | DetectionsResult | InstancesResult | TextRegionsResult


def items_of(result: Result) -> tuple[Item, ...]:
    """Return the located objects of a result; a text has none."""
    match result:
        case DetectionsResult(items) | InstancesResult(items) | TextRegionsResult(items):
            return items
        case TextResult():
            return ()


def text_of(result: Result) -> str | None:
    """Return the text of a result; text regions are its lines, and objects have none."""
    match result:
        case TextResult(text):
            return text
        case TextRegionsResult(regions):
            return "\n".join(region.text for region in regions)
    return None


def label_of(item: Item) -> str:
    """Return the label of an object, or the text of a text region."""
    return item.text if isinstance(item, TextRegion) else item.label


def box_of(item: Item) -> BoxXyxy:
    """Return the box of an object, or the box around a text region."""
    return bounding_box(item.quad_xy) if isinstance(item, TextRegion) else item.box_xyxy


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

    def to_supervision(self) -> "supervision.Detections":
        """Return boxes, scores, labels and, if present, masks and quads.

        A text is `metadata["text"]`, without a box. Class ids number the labels of this answer in
        order of first appearance.
        """
        items = items_of(self.result)
        quads_xy = None
        if isinstance(self.result, TextRegionsResult):
            quads_xy = [region.quad_xy for region in self.result.text_regions]
        return _supervision_detections(
            [box_of(item) for item in items],
            [label_of(item) for item in items],
            [item.score for item in items],
            self._masks(),
            quads_xy,
            self.result.text if isinstance(self.result, TextResult) else None,
        )

    def to_fiftyone(self) -> Any:  # fiftyone has no types
        """Return `Detections`, instances with masks, `Polylines` of text regions, or of a text a
        `Classification`.
        """
        if isinstance(self.result, TextResult):
            return _fiftyone_classification(self.result.text)
        items = items_of(self.result)
        labels = [label_of(item) for item in items]
        scores = [item.score for item in items]
        if isinstance(self.result, TextRegionsResult):
            quads_xy = [region.quad_xy for region in self.result.text_regions]
            return _fiftyone_polylines(self.image, quads_xy, labels, scores)
        boxes_xyxy = [box_of(item) for item in items]
        return _fiftyone_detections(self.image, boxes_xyxy, labels, scores, self._masks())

    def to_coco(self, file_name: str = "", image_id: int = 1) -> dict[str, Any]:
        """Return a document of COCO about this image; a text is its caption."""
        return _coco_document(self, file_name, image_id)

    def to_pandas(self) -> Any:  # pandas has no types
        """Return a `pandas.DataFrame` with a row for each object, or for the text."""
        return _table(self)

    def _masks(self) -> NDArray[np.bool_] | None:  # (N, H, W)
        if not isinstance(self.result, InstancesResult):
            return None
        shape = (len(self.result.instances), self.image.height, self.image.width)
        masks = np.zeros(shape, dtype=np.bool_)
        for index, instance in enumerate(self.result.instances):
            masks[index] = instance.to_mask(self.image)
        return masks


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


def _supervision_detections(
    boxes_xyxy: Sequence[BoxXyxy],
    names: Sequence[str],
    scores: Sequence[float],
    masks: NDArray[np.bool_] | None = None,  # (N, H, W)
    quads_xy: Sequence[QuadXy] | None = None,
    text: str | None = None,
) -> "supervision.Detections":
    """Return detections whose class ids number the names in order of first appearance.

    Quads are in `data["xyxyxyxy"]`, (N, 4, 2). Raises `ImportError` if supervision is not
    installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError("to_supervision() needs supervision: pip install supervision") from error
    class_ids = {name: index for index, name in enumerate(dict.fromkeys(names))}
    data: dict[str, NDArray[np.generic] | list[object]] = {"class_name": np.array(names, dtype=str)}
    if quads_xy is not None:
        data["xyxyxyxy"] = np.array(quads_xy, dtype=np.float32).reshape(-1, 4, 2)
    return supervision.Detections(
        xyxy=np.array(boxes_xyxy, dtype=np.float32).reshape(-1, 4),
        mask=masks,
        confidence=np.array(scores, dtype=np.float32),
        class_id=np.array([class_ids[name] for name in names], dtype=int),
        data=data,
        metadata={} if text is None else {"text": text},
    )


def _fiftyone_detections(
    image: ImageSize,
    boxes_xyxy: Sequence[BoxXyxy],
    names: Sequence[str],
    scores: Sequence[float],
    masks: NDArray[np.bool_] | None = None,  # (N, H, W)
) -> Any:
    """Return `fiftyone.Detections`, with boxes relative to the image as FiftyOne has them.

    A mask covers its box, which is widened to whole pixels. Raises `ImportError` if fiftyone is not
    installed.
    """
    labels = _fiftyone_labels()
    detections = []
    for index, (box_xyxy, name, score) in enumerate(zip(boxes_xyxy, names, scores, strict=True)):
        mask = None
        if masks is not None:
            corner = (image.width - 1, image.height - 1)
            x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, corner).astype(int).tolist()
            far = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (image.width, image.height))
            x2, y2 = far.astype(int).tolist()
            box_xyxy = (x1, y1, x2, y2)
            mask = masks[index][y1:y2, x1:x2]
        (x1, y1), (x2, y2) = _relative((box_xyxy[:2], box_xyxy[2:]), image)
        box = [x1, y1, x2 - x1, y2 - y1]
        detections.append(
            labels.Detection(label=name, bounding_box=box, confidence=score, mask=mask)
        )
    return labels.Detections(detections=detections)


def _fiftyone_polylines(
    image: ImageSize,
    rings: Sequence[Sequence[PointXy]],
    names: Sequence[str],
    scores: Sequence[float],
) -> Any:
    """Return `fiftyone.Polylines`, one closed line for each ring; raise `ImportError`."""
    labels = _fiftyone_labels()
    polylines = []
    for ring, name, score in zip(rings, names, scores, strict=True):
        points = [list(_relative(ring, image))]
        polylines.append(labels.Polyline(label=name, points=points, confidence=score, closed=True))
    return labels.Polylines(polylines=polylines)


def _fiftyone_classification(text: str) -> Any:
    """Return `fiftyone.Classification`; raise `ImportError`."""
    return _fiftyone_labels().Classification(label=text)


def _fiftyone_labels() -> Any:
    try:
        return import_module("fiftyone.core.labels")
    except ImportError as error:
        raise ImportError("to_fiftyone() needs fiftyone: pip install fiftyone") from error


def _relative(points: Sequence[Sequence[float]], image: ImageSize) -> Iterator[PointXy]:
    for x, y in points:
        yield x / image.width, y / image.height


def _coco_document(answer: Answer, file_name: str, image_id: int) -> dict[str, Any]:
    """Return a document of one image; ids count from 1, in order of first appearance."""
    size = {"width": answer.image.width, "height": answer.image.height}
    images = [{"id": image_id, "file_name": file_name, **size}]
    if isinstance(answer.result, TextResult):
        caption = {"id": 1, "image_id": image_id, "caption": answer.result.text}
        return {"images": images, "categories": [], "annotations": [caption]}
    items = items_of(answer.result)
    is_text = any(isinstance(item, TextRegion) for item in items)
    labels = ["text"] if is_text else dict.fromkeys(label_of(item) or UNNAMED for item in items)
    ids = {label: number for number, label in enumerate(labels, 1)}
    annotations = []
    for number, item in enumerate(items, 1):
        category = "text" if is_text else label_of(item) or UNNAMED
        place: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": ids[category]}
        annotations.append(place | coco_shape(item, answer.image))
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    return {"images": images, "categories": categories, "annotations": annotations}


def coco_shape(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return box, area and segmentation: polygons, or run lengths where their union differs."""
    x1, y1, x2, y2 = box_of(item)
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


def _table(answer: Answer) -> Any:  # pandas has no types
    """Return a row for each object, or for the text; `shape` is a quad or polygons."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install pandas") from error
    rows: list[tuple[Any, ...]] = []
    if isinstance(answer.result, TextResult):
        rows.append((answer.model, answer.task, answer.result.text, *[None] * 6))
    for item in items_of(answer.result):
        shape = item.quad_xy if isinstance(item, TextRegion) else getattr(item, "polygons_xy", None)
        label = label_of(item)
        rows.append((answer.model, answer.task, label, item.score, *box_of(item), shape))
    return pandas.DataFrame(rows, columns=list(_COLUMNS))
