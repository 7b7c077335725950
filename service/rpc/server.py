"""The gRPC server: `diptych.v1.Vision`, the standard health service, reflection.

Messages (service/rpc/proto/vision.proto) have the fields of the JSON, where points, boxes and lists
may be arrays without names.
"""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service import answering
from service.admission.api_keys import ApiKeys
from service.admission.places import RequestContext
from service.analysis import stream_analysis
from service.answering import answer_each
from service.errors import InvalidRequest
from service.images.inputs import ImageInput, file_or_handle
from service.inference.core import MAX_IMAGES, Core
from service.rpc.boundary import VISION, Descriptor, GrpcBoundary, max_message_bytes
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto import vision_pb2_grpc as pb_grpc
from service.schema import rendering
from service.settings import Settings

logger = logging.getLogger(__name__)

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
        return await self._answered(pb.Answer, answering.predict, request, context)

    async def Compare(self, request: pb.CompareRequest, context: RequestContext) -> pb.Comparison:
        return await self._answered(pb.Comparison, answering.compare, request, context)

    async def Analyze(self, request: pb.AnalyzeRequest, context: RequestContext) -> pb.Analysis:
        return await self._answered(pb.Analysis, answering.analyze, request, context)

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
        call: answering.Call,
        request: ImageRequest,
        context: RequestContext,
    ) -> MessageT:
        answer = partial(call, self._core, request_fields(request))
        if not request.images:
            body = await answer(file_or_handle(request.image), context)
            return message_of(kind, body.model_dump())
        if request.image:
            raise InvalidRequest("image and images are given; send one of them", "images")
        if len(request.images) > MAX_IMAGES:
            message = f"{len(request.images)} images are sent; at most {MAX_IMAGES} are allowed"
            raise InvalidRequest(message, "images")
        images = list(map(file_or_handle, request.images))
        several = await answer_each(self._core, images, context, answer)
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


_HEALTH_EVERY_S = 1.0
_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", 256),  # per connection
    # Windows do not grow with the bandwidth, in which 100 calls of no key took 420 MB: what is sent
    # and not read stays with the client. A message of 18 MB takes 0.9 s at 40 ms of round trip,
    # with growing windows 0.2 s.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_allowed_incoming_connections", 1_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
]
_ONE_GATEWAY = [("grpc.so_reuseport", 0)]  # a port in use is an error
_SEVERAL_GATEWAYS = [
    ("grpc.so_reuseport", 1),
    # A client's next connection may go to another gateway; calls in flight end on the old one.
    ("grpc.max_connection_age_ms", 60_000),
]


def grpc_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    key = settings.tls_key_file.read_bytes()
    return grpc.ssl_server_credentials([(key, settings.tls_certificate_file.read_bytes())])


@dataclasses.dataclass
class GrpcServer:
    """Listens from `start` to `stop`; its health is SERVING while `is_ready` returns True."""

    core: Core
    api_keys: ApiKeys
    settings: Settings
    is_ready: Callable[[], Awaitable[bool]]
    _health: Any = dataclasses.field(init=False, default_factory=health.aio.HealthServicer)
    _watching: asyncio.Task[None] | None = dataclasses.field(init=False, default=None)

    async def start(self) -> None:
        options = [
            *_OPTIONS,
            ("grpc.max_receive_message_length", max_message_bytes(self.settings)),
            *(_SEVERAL_GATEWAYS if self.settings.gateway_workers > 1 else _ONE_GATEWAY),
        ]
        boundary = GrpcBoundary(self.core, self.api_keys, self.settings)
        self._server = grpc.aio.server(interceptors=[boundary], options=options)
        pb_grpc.add_VisionServicer_to_server(VisionApi(self.core), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (VISION, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{self.settings.host}:{self.settings.grpc_port}"
        credentials = grpc_credentials(self.settings)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())
        logger.info("gRPC is listening on %s:%d", self.settings.host, port)

    async def set_not_serving(self) -> None:
        """Set health to NOT_SERVING for good, whatever `is_ready` returns."""
        if self._watching is not None:
            self._watching.cancel()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls and end after those in flight, at most `grace_s` seconds later."""
        await self.set_not_serving()
        await self._server.stop(grace_s)

    async def _watch(self) -> None:
        while True:
            states = health_pb2.HealthCheckResponse
            await self._set_health(states.SERVING if await self.is_ready() else states.NOT_SERVING)
            await asyncio.sleep(_HEALTH_EVERY_S)

    async def _set_health(self, status: int) -> None:
        for name in ("", VISION):
            await self._health.set(name, status)
