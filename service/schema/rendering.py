"""Answers, comparisons and errors of the core to the JSON models of `service.schema.wire`."""

import calendar
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from service.analysis.execution import Analysis, StepAnswer, StepAnswers
from service.errors import ServiceError
from service.inference.core import Comparison
from service.inference.prediction import Answer, Piece
from service.inference.served_models import ServedModel, ServedModels
from service.schema.wire import (
    AnalysisJson,
    AnswerJson,
    ComparisonJson,
    ErrorDetail,
    ErrorJson,
    GuaranteeJson,
    ImageJson,
    ModelErrorJson,
    OneJson,
    PieceJson,
    ResultJson,
    SeveralJson,
    StepAnswerJson,
    StepErrorJson,
    StepJson,
    TilesJson,
    TimingsJson,
    UsageJson,
)
from tasks.catalog import CatalogEntry
from tasks.scores import calibration_key
from tasks.table import TASKS

# its fields have the names of a result's attributes
RESULT: TypeAdapter[ResultJson] = TypeAdapter(ResultJson)


def answer_json(answer: Answer, request_id: str) -> AnswerJson:
    timings_ms = answer.times.ms
    parameters = answer.request.parameters
    names = parameters.labels or parameters.phrases
    tiles = answer.tiles
    guarantee = answer.guarantee
    queue_ms = timings_ms.pop("encode_queue") + timings_ms.pop("decode_queue")
    return AnswerJson(
        id=request_id,
        model=answer.model.id,
        task=answer.request.task.id,
        labels=None if names is None else list(names),
        result=RESULT.validate_python(answer.result),
        raw_text=answer.written.text,
        finish_reason=answer.written.finish_reason,
        calibrated=answer.is_calibrated,
        tiles=None if tiles is None else TilesJson.model_validate(tiles),
        guarantee=None if guarantee is None else GuaranteeJson.model_validate(guarantee),
        image=image_json(answer.image_size_wh),
        usage=UsageJson.model_validate(answer.usage),
        vision_cache=answer.written.features.outcome,
        timings_ms=TimingsJson(**timings_ms, queue=round(queue_ms, 3)),
    )


def image_json(size_wh: tuple[int, int]) -> ImageJson:
    width, height = size_wh
    return ImageJson(width=width, height=height)


def piece_json(piece: Piece) -> PieceJson:
    if piece.view is None:
        return PieceJson(text=piece.text)
    result = RESULT.validate_python(piece.view.result)
    return PieceJson(text=piece.text, view=piece.view.box, result=result)


def comparison_json(comparison: Comparison, request_id: str) -> ComparisonJson:
    answers = [
        ModelErrorJson(model=model.id, error=error_detail(outcome, request_id))
        if isinstance(outcome, ServiceError)
        else answer_json(outcome, request_id)
        for model, outcome in comparison.answers
    ]
    image = image_json(comparison.image_size_wh)
    return ComparisonJson(
        id=request_id, task=comparison.request.task.id, image=image, answers=answers
    )


def error_detail(error: ServiceError, request_id: str) -> ErrorDetail:
    return ErrorDetail(
        code=error.code, message=error.message, param=error.param, request_id=request_id
    )


_PROOF_FIELDS = ["fields", "min_precision", "confidence", "min_score", "max_labels", "num_images"]


def models_json(models: ServedModels) -> dict[str, Any]:
    """Return the served models in the list format of the OpenAI API."""
    return {"object": "list", "data": [model_json(model) for model in models]}


def catalog_json(models: ServedModels) -> dict[str, Any]:
    """Return the served models, then the catalog's others with their serve commands."""
    served = [model_json(model) | {"served": True, "serve_command": None} for model in models]
    unserved = [
        _row(model.entry, model.precision)
        | {"checkpoint": None, "calibrated_tasks": [], "calibration": "", "proofs": []}
        | {"agreement": None}
        | {"served": False, "serve_command": f'make serve MODELS="{model.entry.id}"'}
        for model in models.unserved
    ]
    return {"object": "list", "data": served + unserved}


def tasks_json(models: ServedModels) -> dict[str, Any]:
    """Return every task with the JSON Schema of its parameters and the models that offer it."""
    rows: list[dict[str, Any]] = []
    for task in TASKS.values():
        offering = [model.id for model in models if task.id in model.entry.task_ids]
        rows.append(
            {
                "id": task.id,
                "object": "task",
                "description": task.description,
                "result": task.result_kind,
                "parameters": task.json_schema(),
                "models": offering,
            }
        )
    return {"object": "list", "data": rows}


def model_json(model: ServedModel) -> dict[str, Any]:
    proofs = []
    for served_proof in model.proofs:
        proofs.append({name: getattr(served_proof.proof, name) for name in _PROOF_FIELDS})
    served = {
        "checkpoint": model.manifest.checkpoint,
        "calibrated_tasks": sorted(task for task, tiled in model.calibrations if not tiled),
        "calibration": calibration_key(model.calibrations),
        "proofs": proofs,
        "agreement": model.agreement,
    }
    return _row(model.entry, model.precision) | served


def _row(entry: CatalogEntry, precision: str) -> dict[str, Any]:
    """Return the columns of the comparison table."""
    year, month = map(int, entry.release_date.split("-"))
    return {
        "id": entry.id,
        "object": "model",
        "created": calendar.timegm((year, month, 1, 0, 0, 0)),
        "owned_by": entry.organization,
        "family": entry.family,
        "organization": entry.organization,
        "category": entry.category,
        "modality": entry.modality,
        "release_date": entry.release_date,
        "context_window": entry.context_window,
        "parameters": entry.parameters,
        "license": entry.license,
        "tasks": list(entry.task_ids),
        "features": list(entry.features),
        "resolution": entry.resolution,
        "precision": precision,
        "adapter_of": entry.adapter_of,
    }


def step_answer_json(answer: StepAnswer, request_id: str) -> StepAnswerJson | StepErrorJson:
    outcome = answer.outcome
    if isinstance(outcome, ServiceError):
        error = error_detail(outcome, request_id)
        return StepErrorJson(of=answer.of, view=answer.view, model=answer.model.id, error=error)
    return StepAnswerJson(of=answer.of, view=answer.view, **dict(answer_json(outcome, request_id)))


def step_json(step: StepAnswers, request_id: str) -> StepJson:
    return StepJson(
        id=step.step.options.id,
        task=step.step.task.id,
        truncated=step.is_truncated,
        answers=[step_answer_json(answer, request_id) for answer in step.answers],
    )


def analysis_json(analysis: Analysis, request_id: str) -> AnalysisJson:
    steps = [step_json(step, request_id) for step in analysis.steps]
    return AnalysisJson(id=request_id, image=image_json(analysis.image_size_wh), steps=steps)


def several_json(outcomes: Iterable[OneJson | ServiceError], request_id: str) -> SeveralJson:
    """Return the outcomes about several images, in order."""
    answers: list[OneJson | ErrorJson] = []
    for outcome in outcomes:
        if isinstance(outcome, ServiceError):
            answers.append(ErrorJson(error=error_detail(outcome, request_id)))
        else:
            answers.append(outcome)
    return SeveralJson(id=request_id, answers=answers)
