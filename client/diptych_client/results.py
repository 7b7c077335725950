"""Answers of the service as values: the same over REST and gRPC, so they compare equal.

Boxes `[x1, y1, x2, y2]`, polygons and quads are in pixels of the original, upright image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diptych_client.conversions.fiftyone_labels import (
    fiftyone_classification,
    fiftyone_detections,
    fiftyone_polylines,
)
from diptych_client.conversions.supervision_detections import supervision_detections
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
)

if TYPE_CHECKING:
    import supervision


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
        return supervision_detections(
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
            return fiftyone_classification(self.result.text)
        items = items_of(self.result)
        names = [label_of(item) for item in items]
        scores = [item.score for item in items]
        if isinstance(self.result, TextRegionsResult):
            quads_xy = [region.quad_xy for region in self.result.text_regions]
            return fiftyone_polylines(self.image, quads_xy, names, scores)
        boxes_xyxy = [box_of(item) for item in items]
        return fiftyone_detections(self.image, boxes_xyxy, names, scores, self._masks())

    def to_coco(self, file_name: str = "", image_id: int = 1) -> dict[str, Any]:
        """Return a document of COCO about this image; a text is its caption."""
        from diptych_client.conversions.coco import coco_of  # it imports this module

        return coco_of(self, file_name, image_id)

    def to_pandas(self) -> Any:  # pandas has no types
        """Return a `pandas.DataFrame` with a row for each object, or for the text."""
        from diptych_client.conversions.table import table_of  # it imports this module

        return table_of(self)

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
