"""The JSON of answers and errors as pydantic models, and their rendering from answers of the core.

/openapi.json shows them. Fields are the public contract; boxes, polygons and quads are in pixels of
the original image.
"""

import operator
from functools import partial
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter

from service.analysis import Analysis, StepAnswer
from service.errors import ErrorCode, ServiceError
from service.inference.core import Comparison
from service.inference.models import ServedModels, describe_entry
from service.inference.prediction import Answer, Piece
from service.inference.request_fields import PredictFields
from tasks.table import TASKS

JsonObject = dict[str, Any]
Point = tuple[float, float]

_is_none = partial(operator.is_, None)


class Wire(BaseModel):
    """A frozen JSON object; results are read from the attributes of `tasks.results`."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class DetectionJson(Wire):
    """A labelled box; `label` is empty where the task has no labels."""

    box: tuple[float, float, float, float] = Field(description="[x1, y1, x2, y2]")
    label: str
    score: float | None = Field(
        ge=0,
        le=1,
        description=(
            "ranks a model's boxes; a probability if the answer is calibrated; null where an"
            " engine gives no probabilities"
        ),
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
    familiarity: float | None = Field(
        None, ge=0, le=1, description="how like the images of the calibration; null: unknown"
    )
    image_embedding: str | None = Field(None, exclude_if=_is_none)
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


# its fields have the names of a result's attributes
RESULT: TypeAdapter[ResultJson] = TypeAdapter(ResultJson)


def answer_json(answer: Answer, request_id: str) -> AnswerJson:
    times_ms: dict[str, float] = {}
    for stage, time_s in answer.times_s.items():
        times_ms[stage] = round(time_s * 1000, 3)
    times_ms["queue"] = round(times_ms.pop("encode_queue") + times_ms.pop("decode_queue"), 3)
    parameters = answer.request.parameters
    fields = answer.request.fields
    has_embedding = isinstance(fields, PredictFields) and fields.image_embedding
    width, height = answer.image_size_wh
    document = {
        "id": request_id,
        "model": answer.model.id,
        "task": answer.request.task.id,
        "labels": parameters.labels or parameters.phrases,
        "result": answer.result,
        "raw_text": answer.written.text,
        "finish_reason": answer.written.finish_reason,
        "calibrated": answer.is_calibrated,
        "familiarity": answer.familiarity,
        "image_embedding": answer.written.features.embedding if has_embedding else None,
        "tiles": answer.tiles,
        "guarantee": answer.guarantee,
        "image": {"width": width, "height": height},
        "usage": answer.written.usage,
        "vision_cache": answer.written.features.outcome,
        "timings_ms": times_ms,
    }
    return AnswerJson.model_validate(document)


def _image_json(size_wh: tuple[int, int]) -> ImageJson:
    width, height = size_wh
    return ImageJson(width=width, height=height)


def error_detail(error: ServiceError, request_id: str) -> ErrorDetail:
    return ErrorDetail(
        code=error.code, message=error.message, param=error.param, request_id=request_id
    )


def _step_answer_json(answer: StepAnswer, request_id: str) -> StepAnswerJson | StepErrorJson:
    outcome = answer.outcome
    if isinstance(outcome, ServiceError):
        error = error_detail(outcome, request_id)
        return StepErrorJson(of=answer.of, view=answer.view, model=answer.model.id, error=error)
    return StepAnswerJson(of=answer.of, view=answer.view, **dict(answer_json(outcome, request_id)))


def analysis_json(analysis: Analysis, request_id: str) -> AnalysisJson:
    steps: list[StepJson] = []
    for step in analysis.steps:
        step_json = StepJson(
            id=step.step.options.id,
            task=step.step.task.id,
            truncated=step.is_truncated,
            answers=[_step_answer_json(answer, request_id) for answer in step.answers],
        )
        steps.append(step_json)
    return AnalysisJson(id=request_id, image=_image_json(analysis.image_size_wh), steps=steps)


def comparison_json(comparison: Comparison, request_id: str) -> ComparisonJson:
    answers: list[AnswerJson | ModelErrorJson] = []
    for model, outcome in comparison.answers:
        if isinstance(outcome, ServiceError):
            error = error_detail(outcome, request_id)
            answers.append(ModelErrorJson(model=model.id, error=error))
        else:
            answers.append(answer_json(outcome, request_id))
    image_json = _image_json(comparison.image_size_wh)
    task_id = comparison.request.task.id
    return ComparisonJson(id=request_id, task=task_id, image=image_json, answers=answers)


def prediction_event(event: Piece | Answer, request_id: str) -> tuple[str, JsonObject]:
    """Return name and data of an event; the result of a view is in pixels of the whole image."""
    if isinstance(event, Answer):
        return "result", answer_json(event, request_id).model_dump()
    if event.view is None:
        return "token", {"text": event.text}
    result = RESULT.validate_python(event.view.result).model_dump()
    return "token", {"text": event.text, "view": event.view.box, "result": result}


def analysis_event(event: StepAnswer | Analysis, request_id: str) -> tuple[str, JsonObject]:
    if isinstance(event, Analysis):
        return "result", analysis_json(event, request_id).model_dump()
    answer = _step_answer_json(event, request_id).model_dump()
    return "answer", {"step": event.step_id, **answer}


def models_json(models: ServedModels) -> JsonObject:
    return {"object": "list", "data": [model.describe() for model in models]}


def catalog_json(models: ServedModels) -> JsonObject:
    rows = [model.describe() | {"served": True, "serve_command": None} for model in models]
    for entry, precision in models.unserved:
        row = describe_entry(entry, precision)
        row |= {"checkpoint": None, "calibrated_tasks": [], "calibration": "", "proofs": []}
        command = f'make serve MODELS="{entry.id}"'
        rows.append(row | {"agreement": None, "served": False, "serve_command": command})
    return {"object": "list", "data": rows}


def tasks_json(models: ServedModels) -> JsonObject:
    rows: list[JsonObject] = []
    for task in TASKS.values():
        row = {
            "id": task.id,
            "object": "task",
            "description": task.description,
            "result": task.result_kind,
            "parameters": task.json_schema(),
            "models": [model.id for model in models if task.id in model.entry.task_ids],
        }
        rows.append(row)
    return {"object": "list", "data": rows}
