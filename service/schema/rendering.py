"""Answers, comparisons and errors of the core to the JSON models of `service.schema.wire`."""

from dataclasses import fields

from pydantic import TypeAdapter

from service.errors import ServiceError
from service.inference.core import Comparison
from service.inference.prediction import Answer, StageTimes
from service.schema.wire import (
    AnswerJson,
    ComparisonJson,
    ErrorDetail,
    ImageJson,
    ModelErrorJson,
    ResultJson,
    TimingsJson,
    UsageJson,
)
from tasks.results import Result

_RESULT: TypeAdapter[ResultJson] = TypeAdapter(ResultJson)


def answer_json(answer: Answer, request_id: str) -> AnswerJson:
    return AnswerJson(
        id=request_id,
        model=answer.model.id,
        task=answer.request.task.id,
        result=result_json(answer.result),
        raw_text=answer.raw_text,
        finish_reason=answer.finish_reason,
        calibrated=answer.is_calibrated,
        image=_image_json(answer.image_size_wh),
        usage=UsageJson(
            image_tokens=answer.num_image_tokens,
            prompt_tokens=answer.num_prompt_tokens,
            generated_tokens=answer.num_generated_tokens,
        ),
        vision_cache=answer.vision_cache,
        timings_ms=TimingsJson(**_timings_ms(answer.times)),
    )


def comparison_json(comparison: Comparison, request_id: str) -> ComparisonJson:
    answers = [
        ModelErrorJson(model=model.id, error=error_detail(outcome, request_id))
        if isinstance(outcome, ServiceError)
        else answer_json(outcome, request_id)
        for model, outcome in comparison.answers
    ]
    image = _image_json(comparison.image_size_wh)
    return ComparisonJson(id=request_id, task=comparison.request.task.id, image=image, answers=answers)


def error_detail(error: ServiceError, request_id: str) -> ErrorDetail:
    return ErrorDetail(code=error.code, message=error.message, param=error.param, request_id=request_id)


def result_json(result: Result) -> ResultJson:
    """Return the JSON of a result: its fields have the names of the attributes."""
    return _RESULT.validate_python(result)


def _image_json(size_wh: tuple[int, int]) -> ImageJson:
    return ImageJson(width=size_wh[0], height=size_wh[1])


def _timings_ms(times: StageTimes) -> dict[str, float]:
    """Return the milliseconds of each stage by the contract's names; the two queues are summed."""
    ms = {field.name.removesuffix("_s"): round(getattr(times, field.name) * 1000, 3) for field in fields(times)}
    queue = ms.pop("encode_queue") + ms.pop("decode_queue")
    return ms | {"queue": round(queue, 3)}
