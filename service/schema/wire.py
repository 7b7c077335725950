"""The JSON of answers and errors as pydantic models, which /openapi.json shows.

Fields are the public contract; boxes, polygons and quads are in pixels of the original image.
"""

import operator
from functools import partial
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from service.errors import ErrorCode

Point = tuple[float, float]

_is_none = partial(operator.is_, None)


class Wire(BaseModel):
    """A frozen JSON object; results are read from the attributes of `tasks.results`."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class DetectionJson(Wire):
    """A labelled box; `label` is empty where the task has no labels."""

    box: tuple[float, float, float, float] = Field(description="[x1, y1, x2, y2]")
    label: str
    score: float = Field(
        ge=0, le=1, description="ranks a model's boxes; a probability if the answer is calibrated"
    )


class RleJson(Wire):
    """Mask of the whole image in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(
        validation_alias=AliasChoices("size", "size_hw"), description="[height, width]"
    )
    counts: str


class InstanceJson(Wire):
    """A segmented object, with `polygons` or `mask` as `mask_format` requests."""

    box: tuple[float, float, float, float] = Field(description="[x1, y1, x2, y2]")
    label: str
    score: float = Field(ge=0, le=1)
    polygons: list[list[Point]] | None = Field(
        None,
        exclude_if=_is_none,
        description="rings of [x, y]; even-odd rule: a point within an odd number is inside",
    )
    mask: RleJson | None = Field(None, exclude_if=_is_none)


class TextRegionJson(Wire):
    """A line of text and its four corners."""

    quad: tuple[Point, Point, Point, Point]
    text: str
    score: float = Field(ge=0, le=1)


class TextJson(Wire):
    """Result of a task with text output."""

    text: str


class DetectionsJson(Wire):
    """Result of a task with boxes."""

    detections: list[DetectionJson]


class InstancesJson(Wire):
    """Result of a task with masks."""

    instances: list[InstanceJson]


class TextRegionsJson(Wire):
    """Result of a task with located text."""

    text_regions: list[TextRegionJson]


ResultJson = TextJson | DetectionsJson | InstancesJson | TextRegionsJson


class StoredImageJson(Wire):
    """An image that requests may name by its id."""

    id: str
    expires_at: int = Field(description="seconds of the epoch")
    bytes: int
    width: int = Field(description="of the upright image in pixels")
    height: int


class DeletedImageJson(Wire):
    """A stored image that was deleted."""

    id: str
    deleted: Literal[True] = True


class ImageJson(Wire):
    """Size of the upright image in pixels."""

    width: int
    height: int


class UsageJson(Wire):
    """Tokens of one answer, summed over the prompts of its task."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int = Field(description="including start and end tokens")
    constrained_tokens: int = Field(
        description="generated where the model preferred a token that `constrained` forbids"
    )


class TimingsJson(Wire):
    """Milliseconds of each stage; `queue` is waiting and transport before encoder and decoder."""

    preprocess: float
    encode: float
    prefill: float
    decode: float
    postprocess: float
    queue: float
    total: float


class TilesJson(Wire):
    """The tiles of the image that were asked about besides the whole image."""

    rows: int
    columns: int
    asked: int
    skipped: int = Field(description="flat tiles, which were not asked about")
    merged: int = Field(description="objects that another view found too, or a part of")


class GuaranteeJson(Wire):
    """The proof about the objects of an answer, with `min_precision` (docs/guarantees.md)."""

    min_precision: float = Field(description="proved share of right objects among those returned")
    confidence: float
    min_score: float = Field(description="objects have at least this score")
    max_labels: int = Field(description="an image with more such objects returns none")
    images: int = Field(description="labelled images that prove it")
    left_out: int = Field(description="objects that are not returned")


class PieceJson(Wire):
    """A piece of a stream's text; with `tiles` the text about one view, and its result."""

    text: str
    view: tuple[int, int, int, int] | None = Field(
        None, exclude_if=_is_none, description="the view in pixels: left, top, right, bottom"
    )
    result: ResultJson | None = Field(
        None, exclude_if=_is_none, description="in pixels of the whole image, not merged"
    )


class AnswerJson(Wire):
    """One model's answer."""

    id: str
    model: str
    task: str
    labels: list[str] | None = Field(
        None,
        exclude_if=_is_none,
        description="labels or phrases of the request, as they were understood",
    )
    result: ResultJson
    raw_text: str = Field(description="generated text, one line for each prompt of the task")
    finish_reason: Literal["stop", "length"]
    calibrated: bool = Field(description="true: scores are calibrated probabilities")
    tiles: TilesJson | None = Field(
        None, exclude_if=_is_none, description="what `tiles` of the request did"
    )
    guarantee: GuaranteeJson | None = Field(None, exclude_if=_is_none)
    image: ImageJson
    usage: UsageJson
    vision_cache: Literal["hit", "miss", "joined"]
    timings_ms: TimingsJson


class ErrorDetail(Wire):
    """Code, message and field of an error."""

    code: ErrorCode
    message: str
    param: str | None
    request_id: str


class ErrorJson(Wire):
    """Body of every error response."""

    error: ErrorDetail


class ModelErrorJson(Wire):
    """Entry of a comparison for a model that failed."""

    model: str
    error: ErrorDetail


class ComparisonJson(Wire):
    """The answers of several models to one image and one task, in catalog order."""

    id: str
    task: str
    image: ImageJson
    answers: list[AnswerJson | ModelErrorJson]


class AskedAbout(Wire):
    """The object and the part of the image that an answer is about."""

    of: int | None = Field(
        None,
        exclude_if=_is_none,
        description="index among the objects of the step that `each` names, over all its answers",
    )
    view: tuple[int, int, int, int] | None = Field(
        None, exclude_if=_is_none, description="the crop in pixels: left, top, right, bottom"
    )


class StepAnswerJson(AnswerJson, AskedAbout):
    """One model's answer in a step; its boxes are in pixels of the whole image."""


class StepErrorJson(AskedAbout):
    """A failed answer of a step; the others still answer."""

    model: str
    error: ErrorDetail


class StepJson(Wire):
    """The answers of a step: about the object with the best score first."""

    id: str
    task: str
    truncated: bool = Field(description="true: more objects than `max_each` or the service allows")
    answers: list[StepAnswerJson | StepErrorJson]


class AnalysisJson(Wire):
    """The answers of all steps, in the order of the request."""

    id: str
    image: ImageJson
    steps: list[StepJson]


OneJson = AnswerJson | ComparisonJson | AnalysisJson  # the body about one image


class SeveralJson(Wire):
    """The answers about several images, in order: each as if it were alone, or its error."""

    id: str
    answers: list[OneJson | ErrorJson]
