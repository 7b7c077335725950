"""The gRPC interface `diptych.v1.Vision`, and its messages (service/rpc/proto/vision.proto).

They have the fields of the JSON models; only points and boxes are separate messages.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from service.admission.places import RequestContext
from service.analysis.execution import Analysis, StepAnswer, analyze, stream_analysis
from service.errors import InvalidRequest, ServiceError
from service.images.inputs import ImageInput, file_or_handle
from service.inference.core import MAX_IMAGES, Comparison, answer_each
from service.inference.prediction import Answer, Piece
from service.inference.served_models import ServedModels
from service.rpc.boundary import GrpcApi, method, stream
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto import vision_pb2_grpc as pb_grpc
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


ImageRequest = pb.PredictRequest | pb.CompareRequest | pb.AnalyzeRequest


class VisionApi(GrpcApi, pb_grpc.VisionServicer):
    """The methods of the service."""

    api = "grpc"
    service = pb.DESCRIPTOR.services_by_name["Vision"].full_name
    image_methods = frozenset({"Predict", "PredictStream", "Compare", "Analyze", "AnalyzeStream"})

    @method
    async def Predict(self, request: pb.PredictRequest, context: RequestContext) -> pb.Answer:
        fields = request_fields(request)

        async def ask(image: ImageInput, image_context: RequestContext) -> pb.Answer:
            return answer_message(
                await self._core.predict(image, fields, image_context), image_context.request_id
            )

        return await self._answered(pb.Answer, request, context, ask)

    @stream
    async def PredictStream(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> AsyncGenerator[pb.PredictEvent, None]:
        """Answer with one model: its text while it is generated, then the answer."""
        image = single_image(request)
        async with aclosing(self._core.stream(image, request_fields(request), context)) as events:
            async for event in events:
                yield event_message(event, context.request_id)

    @method
    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        fields = request_fields(request)

        async def ask(image: ImageInput, image_context: RequestContext) -> pb.Comparison:
            comparison = await self._core.compare(image, fields, image_context)
            return comparison_message(comparison, image_context.request_id)

        return await self._answered(pb.Comparison, request, context, ask)

    @method
    async def Analyze(self, request: pb.AnalyzeRequest, context: RequestContext) -> pb.Analysis:
        document = steps_document(request)

        async def ask(image: ImageInput, image_context: RequestContext) -> pb.Analysis:
            return analysis_message(
                await analyze(self._core, image, document, image_context), image_context.request_id
            )

        return await self._answered(pb.Analysis, request, context, ask)

    @stream
    async def AnalyzeStream(
        self, request: pb.AnalyzeRequest, context: RequestContext
    ) -> AsyncGenerator[pb.AnalyzeEvent, None]:
        """Answer all steps: each answer when it is there, then the analysis."""
        image = single_image(request)
        async with aclosing(
            stream_analysis(self._core, image, steps_document(request), context)
        ) as events:
            async for event in events:
                yield analysis_event(event, context.request_id)

    @method
    async def ListModels(
        self, _: pb.ListModelsRequest, __: RequestContext
    ) -> pb.ListModelsResponse:
        return models_message(self._core.models)

    @method
    async def ListTasks(self, _: pb.ListTasksRequest, __: RequestContext) -> pb.ListTasksResponse:
        return tasks_message(self._core.models)

    async def _answered(
        self,
        kind: type[MessageT],
        request: ImageRequest,
        context: RequestContext,
        ask: Callable[[ImageInput, RequestContext], Awaitable[MessageT]],
    ) -> MessageT:
        """Return what `ask` returns about the image of a request, or about each of several."""
        if not request.images:
            return await ask(file_or_handle(request.image), context)
        if request.image:
            raise InvalidRequest("image and images are given; send one of them", "images")
        if len(request.images) > MAX_IMAGES:
            message = f"{len(request.images)} images are sent; at most {MAX_IMAGES} are allowed"
            raise InvalidRequest(message, "images")
        images = list(map(file_or_handle, request.images))
        outcomes = await answer_each(self._core, images, context, ask)
        return several_message(kind, outcomes, context.request_id)


def single_image(request: ImageRequest) -> ImageInput:
    """Return the image of a request whose answers are streamed; raise `InvalidRequest`."""
    if request.images:
        raise InvalidRequest("a stream of answers needs image; images is given", "images")
    return file_or_handle(request.image)
