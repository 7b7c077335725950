"""Typed answers and errors to their JSON."""

from dataclasses import fields

from service.errors import ServiceError
from service.inference.prediction import Answer, StageTimes
from service.schema.wire import (
    AnswerJson,
    DetectionJson,
    DetectionsJson,
    ErrorDetail,
    ImageJson,
    InstanceJson,
    InstancesJson,
    ResultJson,
    RleJson,
    TextJson,
    TextRegionJson,
    TextRegionsJson,
    TimingsJson,
    UsageJson,
)
from tasks.results import DetectionsResult, Instance, InstancesResult, Result, TextRegionsResult, TextResult


def answer_json(answer: Answer, request_id: str) -> AnswerJson:
    """Return the body of one model's answer."""
    return AnswerJson(
        id=request_id,
        model=answer.model.id,
        task=answer.request.task.id,
        result=result_json(answer.result),
        raw_text=answer.raw_text,
        finish_reason=answer.finish_reason,
        image=image_json(answer.image_size_wh),
        usage=UsageJson(
            image_tokens=answer.num_image_tokens,
            prompt_tokens=answer.num_prompt_tokens,
            generated_tokens=answer.num_generated_tokens,
        ),
        vision_cache=answer.vision_cache,
        timings_ms=TimingsJson(**timings_ms(answer.times)),
    )


def image_json(size_wh: tuple[int, int]) -> ImageJson:
    """Return the size of the image."""
    return ImageJson(width=size_wh[0], height=size_wh[1])


def error_detail(error: ServiceError, request_id: str) -> ErrorDetail:
    """Return what an error says."""
    return ErrorDetail(code=error.code, message=error.message, param=error.param, request_id=request_id)


def result_json(result: Result) -> ResultJson:
    """Return the one key of a result."""
    match result:
        case TextResult():
            return TextJson(text=result.text)
        case DetectionsResult():
            return DetectionsJson(
                detections=[DetectionJson(box=d.box, label=d.label, score=d.score) for d in result.detections]
            )
        case InstancesResult():
            return InstancesJson(instances=[_instance_json(instance) for instance in result.instances])
        case TextRegionsResult():
            return TextRegionsJson(
                text_regions=[TextRegionJson(quad=r.quad, text=r.text, score=r.score) for r in result.text_regions]
            )


def _instance_json(instance: Instance) -> InstanceJson:
    """Return an instance with `polygons` or `mask`, whichever it has; the other is unset and so not sent."""
    box, label, score = instance.box, instance.label, instance.score
    if instance.mask is None:
        return InstanceJson(
            box=box, label=label, score=score, polygons=[list(ring) for ring in instance.polygons or ()]
        )
    mask = RleJson(size=instance.mask.size_hw, counts=instance.mask.counts)
    return InstanceJson(box=box, label=label, score=score, mask=mask)


def timings_ms(times: StageTimes) -> dict[str, float]:
    """Return the milliseconds of each stage by the contract's names; both queues are one."""
    ms = {field.name.removesuffix("_s"): round(getattr(times, field.name) * 1000, 3) for field in fields(times)}
    queue = ms.pop("encode_queue") + ms.pop("decode_queue")
    return ms | {"queue": round(queue, 3)}
