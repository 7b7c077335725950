"""The gRPC interface `diptych.v1.Vision`, and its messages (service/rpc/proto/vision.proto).

They have the fields of the JSON, where points, boxes and lists may be arrays without names.
"""

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message

from service.admission.places import RequestContext
from service.analysis import stream_analysis
from service.errors import InvalidRequest
from service.images.inputs import ImageInput, file_or_handle
from service.inference.core import MAX_IMAGES, Core
from service.rpc.boundary import Descriptor
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto import vision_pb2_grpc as pb_grpc
from service.schema import rendering

MessageT = TypeVar("MessageT", bound=Message)
ImageRequest = pb.PredictRequest | pb.CompareRequest | pb.AnalyzeRequest


def request_fields(request: Message) -> dict[str, object]:
    """Return the fields that are set, except images, in the types that they have in JSON."""
    fields: dict[str, object] = {}
    for field, value in request.ListFields():
        if field.name in ("image", "images"):
            continue
        if field.message_type is not None:  # steps
            value = map(request_fields, value)
        is_list = isinstance(value, Iterable) and not isinstance(value, str)
        fields[field.name] = list(value) if is_list else value
    return fields


def message_of(kind: type[MessageT], document: rendering.JsonObject) -> MessageT:
    """Return a message from JSON; other fields than those of the message are left out."""
    return kind(**_message_fields(kind.DESCRIPTOR, document))


def _message_fields(descriptor: Descriptor, value: Any) -> dict[str, Any]:
    """Return a message's fields, which JSON may have in an array, or in an object within."""
    names = [field.name for field in descriptor.fields]
    document = value
    if isinstance(value, list | tuple):
        is_list = descriptor.fields[0].is_repeated
        document = {names[0]: value} if is_list else dict(zip(names, value, strict=True))
    elif "answer" in names and "model" in value:  # or its error, which is set after it
        document = value | {"answer": value}
    elif "result" in value and "result" not in names:
        document = value | value["result"]
    elif "size" in value:
        height, width = value["size"]
        document = value | {"height": height, "width": width}
    fields: dict[str, Any] = {}
    for field in descriptor.fields:
        part = document.get(field.name)
        if field.message_type is None or part is None:
            fields[field.name] = part
        elif field.is_repeated:
            fields[field.name] = [_message_fields(field.message_type, item) for item in part]
        else:
            fields[field.name] = _message_fields(field.message_type, part)
    return fields


class VisionApi(pb_grpc.VisionServicer):
    """The methods of the service."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def Predict(self, request: pb.PredictRequest, context: RequestContext) -> pb.Answer:
        return await self._answered(pb.Answer, rendering.predicted, request, context)

    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        return await self._answered(pb.Comparison, rendering.compared, request, context)

    async def Analyze(self, request: pb.AnalyzeRequest, context: RequestContext) -> pb.Analysis:
        return await self._answered(pb.Analysis, rendering.analyzed, request, context)

    async def PredictStream(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> AsyncGenerator[pb.PredictEvent, None]:
        image = _single_image(request)
        async with aclosing(self._core.stream(image, request_fields(request), context)) as events:
            async for event in events:
                yield event_message(*rendering.prediction_event(event, context.request_id))

    async def AnalyzeStream(
        self, request: pb.AnalyzeRequest, context: RequestContext
    ) -> AsyncGenerator[pb.AnalyzeEvent, None]:
        image = _single_image(request)
        fields = request_fields(request)
        async with aclosing(stream_analysis(self._core, image, fields, context)) as events:
            async for event in events:
                name, document = rendering.analysis_event(event, context.request_id)
                field = "answer" if name == "answer" else "analysis"
                yield message_of(pb.AnalyzeEvent, {field: document})

    async def ListModels(self, *_: object) -> pb.ListModelsResponse:
        rows = rendering.models_json(self._core.models)["data"]
        return message_of(pb.ListModelsResponse, {"models": rows})

    async def ListTasks(self, *_: object) -> pb.ListTasksResponse:
        rows = rendering.tasks_json(self._core.models)["data"]
        for row in rows:
            row["parameters_json_schema"] = json.dumps(row["parameters"])
        return message_of(pb.ListTasksResponse, {"tasks": rows})

    async def _answered(
        self,
        kind: type[MessageT],
        answering: rendering.Answering,
        request: ImageRequest,
        context: RequestContext,
    ) -> MessageT:
        answer = partial(answering, self._core, request_fields(request))
        if not request.images:
            body = await answer(file_or_handle(request.image), context)
            return message_of(kind, body.model_dump())
        if request.image:
            raise InvalidRequest("image and images are given; send one of them", "images")
        if len(request.images) > MAX_IMAGES:
            message = f"{len(request.images)} images are sent; at most {MAX_IMAGES} are allowed"
            raise InvalidRequest(message, "images")
        images = list(map(file_or_handle, request.images))
        several = await rendering.answered_each(self._core, images, context, answer)
        outcomes: list[rendering.JsonObject] = []
        for row in several.model_dump()["answers"]:
            outcomes.append(row if "error" in row else {kind.DESCRIPTOR.name.lower(): row})
        return message_of(kind, {"id": context.request_id, "outcomes": outcomes})


def event_message(name: str, document: rendering.JsonObject) -> pb.PredictEvent:
    if name == "result":
        return message_of(pb.PredictEvent, {"answer": document})
    text = document.pop("text")
    return message_of(pb.PredictEvent, {"text": text, "view": document or None})


def _single_image(request: ImageRequest) -> ImageInput:
    if request.images:
        raise InvalidRequest("a stream of answers needs image; images is given", "images")
    return file_or_handle(request.image)
