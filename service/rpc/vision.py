"""The gRPC interface `diptych.v1.Vision`."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from service.admission.places import RequestContext
from service.analysis.execution import analyze, stream_analysis
from service.errors import InvalidRequest
from service.images.inputs import ImageInput, file_or_handle
from service.inference.answer_places import MAX_IMAGES, answer_each
from service.rpc.boundary import GrpcApi, method, stream
from service.rpc.messages import (
    analysis_event,
    analysis_message,
    answer_message,
    comparison_message,
    event_message,
    models_message,
    request_fields,
    several_message,
    steps_document,
    tasks_message,
)
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto import vision_pb2_grpc as pb_grpc

MessageT = TypeVar("MessageT", bound=Message)
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
