"""Requests and answers of the core from and to the messages of `service/rpc/proto/vision.proto`.

Knows no server.

The messages have the fields of the JSON models; only points and boxes are separate messages.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from service.analysis.execution import Analysis, StepAnswer
from service.errors import ServiceError
from service.inference.core import Comparison
from service.inference.prediction import Answer, Piece
from service.inference.served_models import ServedModels
from service.rpc.proto import vision_pb2 as pb
from service.schema.rendering import answer_json, error_detail, models_json, tasks_json
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    InstancesResult,
    PointXy,
    Result,
    TextRegionsResult,
    TextResult,
)

MessageT = TypeVar("MessageT", bound=Message)


def request_fields(request: Message) -> dict[str, object]:
    """Return the fields that are set, except images, in the types that they have in JSON."""
    fields: dict[str, object] = {}
    for field, value in request.ListFields():
        if field.name not in ("image", "images"):
            is_list = isinstance(value, Iterable) and not isinstance(value, str)
            fields[field.name] = list(value) if is_list else value
    return fields


def answer_message(answer: Answer, request_id: str) -> pb.Answer:
    """Return one model's answer: the fields of its JSON, but for the geometry of the result."""
    document = answer_json(answer, request_id).model_dump(exclude={"result"})
    return pb.Answer(**document, **_result_fields(answer.result))


def event_message(event: Piece | Answer, request_id: str) -> pb.PredictEvent:
    if isinstance(event, Answer):
        return pb.PredictEvent(answer=answer_message(event, request_id))
    if event.view is None:
        return pb.PredictEvent(text=event.text)
    view = pb.View(view=event.view.box, **_result_fields(event.view.result))
    return pb.PredictEvent(text=event.text, view=view)


def comparison_message(comparison: Comparison, request_id: str) -> pb.Comparison:
    answers = [
        pb.ModelAnswer(model=model.id, error=error_detail(outcome, request_id).model_dump())
        if isinstance(outcome, ServiceError)
        else pb.ModelAnswer(model=model.id, answer=answer_message(outcome, request_id))
        for model, outcome in comparison.answers
    ]
    width, height = comparison.image_size_wh
    image = pb.Image(width=width, height=height)
    return pb.Comparison(
        id=request_id, task=comparison.request.task.id, image=image, answers=answers
    )


def several_message(
    kind: type[MessageT], outcomes: Iterable[Message | ServiceError], request_id: str
) -> MessageT:
    """Return the outcomes about several images, in order, as the response of their method."""
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, ServiceError):
            row: dict[str, Any] = {"error": error_detail(outcome, request_id).model_dump()}
        else:
            row = {outcome.DESCRIPTOR.name.lower(): outcome}
        rows.append(pb.ImageOutcome(**row))
    return kind(id=request_id, outcomes=rows)


def models_message(models: ServedModels) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(
        models=[_known_fields(pb.Model, row) for row in models_json(models)["data"]]
    )


def tasks_message(models: ServedModels) -> pb.ListTasksResponse:
    rows = [
        row | {"parameters_json_schema": json.dumps(row["parameters"])}
        for row in tasks_json(models)["data"]
    ]
    return pb.ListTasksResponse(tasks=[_known_fields(pb.Task, row) for row in rows])


def _known_fields(message_class: type[MessageT], row: Mapping[str, object]) -> MessageT:
    """Return a message with those of `row` that are its fields."""
    return message_class(
        **{field.name: row[field.name] for field in message_class.DESCRIPTOR.fields}
    )


def _result_fields(result: Result) -> dict[str, Any]:
    """Return the one member of `result` by its name; an empty list is set too."""
    match result:
        case TextResult():
            return {"text": result.text}
        case DetectionsResult():
            detections: list[pb.Detection] = []
            for detection in result.detections:
                box = _box(detection.box)
                label = detection.label
                detections.append(pb.Detection(box=box, label=label, score=detection.score))
            return {"detections": pb.Detections(detections=detections)}
        case InstancesResult():
            instances: list[pb.Instance] = []
            for instance in result.instances:
                if instance.mask is None:
                    rings = [pb.Ring(points=_points(ring)) for ring in instance.polygons or ()]
                    shape: dict[str, Any] = {"polygons": pb.Polygons(rings=rings)}
                else:
                    height, width = instance.mask.size_hw
                    counts = instance.mask.counts
                    shape = {"mask": pb.RunLengths(height=height, width=width, counts=counts)}
                box = _box(instance.box)
                instances.append(
                    pb.Instance(box=box, label=instance.label, score=instance.score, **shape)
                )
            return {"instances": pb.Instances(instances=instances)}
        case TextRegionsResult():
            regions = [
                pb.TextRegion(quad=_points(r.quad), text=r.text, score=r.score)
                for r in result.text_regions
            ]
            return {"text_regions": pb.TextRegions(text_regions=regions)}


def _box(box: BoxXyxy) -> pb.Box:
    x1, y1, x2, y2 = box
    return pb.Box(x1=x1, y1=y1, x2=x2, y2=y2)


def _points(points: Iterable[PointXy]) -> list[pb.Point]:
    return [pb.Point(x=x, y=y) for x, y in points]


def steps_document(request: pb.AnalyzeRequest) -> dict[str, object]:
    """Return the field `steps` as it is in JSON."""
    return {"steps": [request_fields(step) for step in request.steps]}


def analysis_message(analysis: Analysis, request_id: str) -> pb.Analysis:
    width, height = analysis.image_size_wh
    steps = []
    for step in analysis.steps:
        answers = [_step_answer(answer, request_id) for answer in step.answers]
        of_step = {"id": step.step.options.id, "task": step.step.task.id}
        steps.append(pb.StepAnswers(**of_step, truncated=step.is_truncated, answers=answers))
    return pb.Analysis(id=request_id, image=pb.Image(width=width, height=height), steps=steps)


def analysis_event(event: StepAnswer | Analysis, request_id: str) -> pb.AnalyzeEvent:
    if isinstance(event, Analysis):
        return pb.AnalyzeEvent(analysis=analysis_message(event, request_id))
    answer = pb.StepEvent(step=event.step_id, answer=_step_answer(event, request_id))
    return pb.AnalyzeEvent(answer=answer)


def _step_answer(answer: StepAnswer, request_id: str) -> pb.StepAnswer:
    outcome = answer.outcome
    message = pb.StepAnswer(of=answer.of, view=answer.view or (), model=answer.model.id)
    if isinstance(outcome, ServiceError):
        error = error_detail(outcome, request_id).model_dump()
        message.error.CopyFrom(pb.Error(**error))
    else:
        message.answer.CopyFrom(answer_message(outcome, request_id))
    return message
