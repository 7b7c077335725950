"""Answers, comparisons and errors of the core to the JSON models of `service.schema.wire`."""

from pydantic import TypeAdapter

from service.errors import ServiceError
from service.inference.core import Comparison
from service.inference.prediction import Answer, Piece
from service.schema.wire import (
    AnswerJson,
    ComparisonJson,
    ErrorDetail,
    GuaranteeJson,
    ImageJson,
    ModelErrorJson,
    PieceJson,
    ResultJson,
    TilesJson,
    TimingsJson,
    UsageJson,
)

# its fields have the names of a result's attributes
RESULT: TypeAdapter[ResultJson] = TypeAdapter(ResultJson)


def answer_json(answer: Answer, request_id: str) -> AnswerJson:
    written = answer.written
    timings_ms = dict(answer.times.ms)
    parameters = answer.request.parameters
    names = parameters.labels or parameters.phrases
    proved = answer.guarantee
    queue_ms = timings_ms.pop("encode_queue") + timings_ms.pop("decode_queue")
    return AnswerJson(
        id=request_id,
        model=answer.model.id,
        task=answer.request.task.id,
        labels=None if names is None else list(names),
        result=RESULT.validate_python(answer.result),
        raw_text=written.text,
        finish_reason=written.finish_reason,
        calibrated=answer.is_calibrated,
        tiles=None if answer.tiles is None else TilesJson.model_validate(answer.tiles),
        guarantee=None if proved is None else GuaranteeJson.model_validate(proved),
        image=ImageJson(width=answer.image_size_wh[0], height=answer.image_size_wh[1]),
        usage=UsageJson(
            image_tokens=answer.num_views * answer.model.manifest.num_image_tokens,
            prompt_tokens=written.num_prompt_tokens,
            generated_tokens=written.num_generated_tokens,
            constrained_tokens=written.num_constrained_tokens,
        ),
        vision_cache=written.features.outcome,
        timings_ms=TimingsJson(**timings_ms, queue=round(queue_ms, 3)),
    )


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
    image = ImageJson(width=comparison.image_size_wh[0], height=comparison.image_size_wh[1])
    return ComparisonJson(
        id=request_id, task=comparison.request.task.id, image=image, answers=answers
    )


def error_detail(error: ServiceError, request_id: str) -> ErrorDetail:
    return ErrorDetail(
        code=error.code, message=error.message, param=error.param, request_id=request_id
    )
