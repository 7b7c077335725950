"""The JSON of answers and errors, as pydantic models: what is sent and what /openapi.json says is the same.

Fields are those of the public contract; boxes, polygons and quads are in pixels of the original image.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import ErrorCode

Point = tuple[float, float]


class Wire(BaseModel):
    """A frozen JSON object."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DetectionJson(Wire):
    """A box; `label` is empty where the task gives none."""

    box: tuple[float, float, float, float] = Field(description="[x1, y1, x2, y2]")
    label: str
    score: float = Field(ge=0, le=1, description="exp of the mean log-probability of the tokens that wrote it")


class RleJson(Wire):
    """COCO's compressed run-length encoding of a mask of the whole image."""

    size: tuple[int, int] = Field(description="[height, width]")
    counts: str


class InstanceJson(Wire):
    """A segmented object, with `polygons` or `mask` as `mask_format` asks."""

    box: tuple[float, float, float, float] = Field(description="[x1, y1, x2, y2]")
    label: str
    score: float = Field(ge=0, le=1)
    polygons: list[list[Point]] | None = Field(
        None, description="rings of [x, y]; inside is where an odd number encloses"
    )
    mask: RleJson | None = None


class TextRegionJson(Wire):
    """A piece of text and its four corners."""

    quad: tuple[Point, Point, Point, Point]
    text: str
    score: float = Field(ge=0, le=1)


class TextJson(Wire):
    """Result of a task that answers with text."""

    text: str


class DetectionsJson(Wire):
    """Result of a task that answers with boxes."""

    detections: list[DetectionJson]


class InstancesJson(Wire):
    """Result of a task that answers with masks."""

    instances: list[InstanceJson]


class TextRegionsJson(Wire):
    """Result of a task that answers with text and its place."""

    text_regions: list[TextRegionJson]


ResultJson = TextJson | DetectionsJson | InstancesJson | TextRegionsJson


class ImageJson(Wire):
    """Size of the image, upright, in pixels."""

    width: int
    height: int


class UsageJson(Wire):
    """Tokens of one answer; several prompts of one task are added up."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int = Field(description="start and end tokens included")


class TimingsJson(Wire):
    """Where the time went, milliseconds; `queue` is waiting and transport before encoder and decoder."""

    preprocess: float
    encode: float
    prefill: float
    decode: float
    postprocess: float
    queue: float
    total: float


class AnswerJson(Wire):
    """One model's answer."""

    id: str
    model: str
    task: str
    result: ResultJson
    raw_text: str = Field(description="what the model wrote; one line for each prompt of the task")
    finish_reason: Literal["stop", "length"]
    image: ImageJson
    usage: UsageJson
    vision_cache: Literal["hit", "miss", "joined"]
    timings_ms: TimingsJson


class ErrorDetail(Wire):
    """What was wrong, what was given, what is allowed."""

    code: ErrorCode
    message: str
    param: str | None
    request_id: str


class ErrorJson(Wire):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class ModelErrorJson(Wire):
    """The place of a model in a comparison that gave no answer."""

    model: str
    error: ErrorDetail


class ComparisonJson(Wire):
    """The answers of several models to one image and one task, in catalog order."""

    id: str
    task: str
    image: ImageJson
    answers: list[AnswerJson | ModelErrorJson]
