"""Between the core's values and the messages of `service/rpc/proto/vision.proto`. Knows no server."""

import json
from collections.abc import Iterable

from google.protobuf.message import Message

from service.errors import ServiceError
from service.inference.core import Comparison
from service.inference.listings import models_json, tasks_json
from service.inference.prediction import Answer
from service.inference.served_models import ServedModels
from service.rpc.proto import vision_pb2 as pb
from service.schema.rendering import timings_ms
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    Instance,
    InstancesResult,
    PointXy,
    Result,
    TextRegionsResult,
    TextResult,
)

_MODEL_FIELDS = frozenset(field.name for field in pb.Model.DESCRIPTOR.fields)


def request_fields(request: Message) -> dict[str, object]:
    """Return the fields that are set, but the image, in the types that the same fields have in JSON."""
    given = {field.name: value for field, value in request.ListFields() if field.name != "image"}
    return {
        name: list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        for name, value in given.items()
    }


def answer_message(answer: Answer, request_id: str) -> pb.Answer:
    """Return one model's answer."""
    message = pb.Answer(
        id=request_id,
        model=answer.model.id,
        task=answer.request.task.id,
        raw_text=answer.raw_text,
        finish_reason=answer.finish_reason,
        image=_image(answer.image_size_wh),
        usage=pb.Usage(
            image_tokens=answer.num_image_tokens,
            prompt_tokens=answer.num_prompt_tokens,
            generated_tokens=answer.num_generated_tokens,
        ),
        vision_cache=answer.vision_cache,
        timings_ms=pb.Timings(**timings_ms(answer.times)),
    )
    _write_result(message, answer.result)
    return message


def event_message(event: str | Answer, request_id: str) -> pb.PredictEvent:
    """Return a piece of text, or the answer."""
    if isinstance(event, str):
        return pb.PredictEvent(text=event)
    return pb.PredictEvent(answer=answer_message(event, request_id))


def comparison_message(comparison: Comparison, request_id: str) -> pb.Comparison:
    """Return what several models answered."""
    answers = [
        pb.ModelAnswer(model=model.id, error=error_message(outcome, request_id))
        if isinstance(outcome, ServiceError)
        else pb.ModelAnswer(model=model.id, answer=answer_message(outcome, request_id))
        for model, outcome in comparison.answers
    ]
    image = _image(comparison.image_size_wh)
    return pb.Comparison(id=request_id, task=comparison.request.task.id, image=image, answers=answers)


def error_message(error: ServiceError, request_id: str) -> pb.Error:
    """Return what an error says."""
    return pb.Error(code=error.code, message=error.message, param=error.param, request_id=request_id)


def models_message(models: ServedModels) -> pb.ListModelsResponse:
    """Return the served models."""
    listed = models_json(models)["data"]
    return pb.ListModelsResponse(
        models=[pb.Model(**{name: row[name] for name in row.keys() & _MODEL_FIELDS}) for row in listed]
    )


def tasks_message(models: ServedModels) -> pb.ListTasksResponse:
    """Return every task."""
    return pb.ListTasksResponse(
        tasks=[
            pb.Task(
                id=row["id"],
                description=row["description"],
                result=row["result"],
                parameters_json_schema=json.dumps(row["parameters"]),
                models=row["models"],
            )
            for row in tasks_json(models)["data"]
        ]
    )


def _write_result(message: pb.Answer, result: Result) -> None:
    """Set the one member of `result`; an empty list is set too."""
    match result:
        case TextResult():
            message.text = result.text
        case DetectionsResult():
            found = [pb.Detection(box=_box(d.box), label=d.label, score=d.score) for d in result.detections]
            message.detections.CopyFrom(pb.Detections(detections=found))
        case InstancesResult():
            message.instances.CopyFrom(pb.Instances(instances=map(_instance, result.instances)))
        case TextRegionsResult():
            regions = [pb.TextRegion(quad=_points(r.quad), text=r.text, score=r.score) for r in result.text_regions]
            message.text_regions.CopyFrom(pb.TextRegions(text_regions=regions))


def _instance(instance: Instance) -> pb.Instance:
    message = pb.Instance(box=_box(instance.box), label=instance.label, score=instance.score)
    if instance.mask is None:
        rings = [pb.Ring(points=_points(ring)) for ring in instance.polygons or ()]
        message.polygons.CopyFrom(pb.Polygons(rings=rings))
    else:
        height, width = instance.mask.size_hw
        message.mask.CopyFrom(pb.RunLengths(height=height, width=width, counts=instance.mask.counts))
    return message


def _image(size_wh: tuple[int, int]) -> pb.Image:
    return pb.Image(width=size_wh[0], height=size_wh[1])


def _box(box: BoxXyxy) -> pb.Box:
    x1, y1, x2, y2 = box
    return pb.Box(x1=x1, y1=y1, x2=x2, y2=y2)


def _points(points: Iterable[PointXy]) -> list[pb.Point]:
    return [pb.Point(x=x, y=y) for x, y in points]
