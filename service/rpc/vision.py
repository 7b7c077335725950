"""The gRPC interface `diptych.v1.Vision`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from service.analysis.execution import analyze, stream_analysis
from service.images.handle_ids import file_or_handle
from service.inference.core import RequestContext
from service.rpc.analysis_messages import analysis_event, analysis_message, steps_document
from service.rpc.boundary import GrpcApi, method, stream
from service.rpc.messages import (
    answer_message,
    comparison_message,
    event_message,
    models_message,
    request_fields,
    tasks_message,
)
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto import vision_pb2_grpc as pb_grpc


class VisionApi(GrpcApi, pb_grpc.VisionServicer):
    """The methods of the service."""

    api = "grpc"
    service = pb.DESCRIPTOR.services_by_name["Vision"].full_name
    image_methods = frozenset({"Predict", "PredictStream", "Compare", "Analyze", "AnalyzeStream"})

    @method
    async def Predict(self, request: pb.PredictRequest, context: RequestContext) -> pb.Answer:
        image = file_or_handle(request.image)
        answer = await self._core.predict(image, request_fields(request), context)
        return answer_message(answer, context.request_id)

    @stream
    async def PredictStream(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> AsyncGenerator[pb.PredictEvent, None]:
        """Answer with one model: its text while it is generated, then the answer."""
        async with aclosing(
            self._core.stream(file_or_handle(request.image), request_fields(request), context)
        ) as events:
            async for event in events:
                yield event_message(event, context.request_id)

    @method
    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        image = file_or_handle(request.image)
        comparison = await self._core.compare(image, request_fields(request), context)
        return comparison_message(comparison, context.request_id)

    @method
    async def Analyze(self, request: pb.AnalyzeRequest, context: RequestContext) -> pb.Analysis:
        image = file_or_handle(request.image)
        analysis = await analyze(self._core, image, steps_document(request), context)
        return analysis_message(analysis, context.request_id)

    @stream
    async def AnalyzeStream(
        self, request: pb.AnalyzeRequest, context: RequestContext
    ) -> AsyncGenerator[pb.AnalyzeEvent, None]:
        """Answer all steps: each answer when it is there, then the analysis."""
        image = file_or_handle(request.image)
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
