"""The gRPC interface `diptych.v1.Vision`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from service.inference.core import RequestContext
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
    image_methods = frozenset({"Predict", "PredictStream", "Compare"})

    @method
    async def Predict(self, request: pb.PredictRequest, context: RequestContext) -> pb.Answer:
        answer = await self._core.predict(request.image, request_fields(request), context)
        return answer_message(answer, context.request_id)

    @stream
    async def PredictStream(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> AsyncGenerator[pb.PredictEvent, None]:
        """Answer with one model: its text while it is generated, then the answer."""
        async with aclosing(
            self._core.stream(request.image, request_fields(request), context)
        ) as events:
            async for event in events:
                yield event_message(event, context.request_id)

    @method
    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        comparison = await self._core.compare(request.image, request_fields(request), context)
        return comparison_message(comparison, context.request_id)

    @method
    async def ListModels(
        self, _: pb.ListModelsRequest, __: RequestContext
    ) -> pb.ListModelsResponse:
        return models_message(self._core.models)

    @method
    async def ListTasks(self, _: pb.ListTasksRequest, __: RequestContext) -> pb.ListTasksResponse:
        return tasks_message(self._core.models)
