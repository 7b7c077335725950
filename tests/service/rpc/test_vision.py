"""Messages from the JSON of REST, and calls of each kind of method over fake runners."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.admission.api_keys import ApiKeys
from service.errors import ServiceError
from service.inference.core import Core
from service.inference.prediction import Piece
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from service.rpc.server import GrpcServer, event_message
from service.schema.rendering import prediction_event
from service.settings import Settings
from tasks.results import Detection, DetectionsResult
from tasks.tiles.merging import View
from tests.service.schema.test_rendering import BOX
from tests.support.api_keys import api_keys
from tests.support.fake_service import FLORENCE_ID, PNG, make_core
from tests.support.rest_client import grpc_channel
from tests.support.running_service import free_port
from tests.support.trace_collector import TRACE_ID, TRACEPARENT

KEY = "secret"
OCR = pb.PredictRequest(image=PNG, task="ocr")


@asynccontextmanager
async def serving(core: Core | None = None, keys: ApiKeys | None = None) -> AsyncIterator[Any]:
    async with (
        asyncio.timeout(20),
        grpc_channel(core or make_core(), keys or ApiKeys(None)) as channel,
    ):
        yield channel


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, dict[str, str]]:
    """Return the status of a call, and its trailing metadata."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), trailing(caught.value)


def trailing(caught: grpc.aio.AioRpcError) -> dict[str, str]:
    return {str(name): str(value) for name, value in caught.trailing_metadata()}


async def all_of(stream: Any) -> list[Any]:
    return [message async for message in stream]


async def test_analysis_over_grpc() -> None:
    steps = [
        pb.Step(id="things", task="object_detection"),
        pb.Step(id="text", task="ocr", each="things", view="crop", models=[FLORENCE_ID]),
    ]
    request = pb.AnalyzeRequest(image=PNG, steps=steps)
    async with serving() as channel:
        stub: Any = VisionStub(channel)
        analysis = await stub.Analyze(request)
        first, second, last = await all_of(stub.AnalyzeStream(request))
    things, text = analysis.steps
    assert (things.id, len(things.answers), things.truncated) == ("things", 1, False)
    (answer,) = text.answers
    assert (answer.of, list(answer.view), answer.answer.text) == (0, [38, 77, 346, 308], "HELLO")
    assert [event.answer.step for event in (first, second)] == ["things", "text"]
    assert second.answer.answer.answer.text == "HELLO"
    assert [step.id for step in last.analysis.steps] == ["things", "text"]


async def test_stored_image_over_grpc() -> None:
    request = pb.PredictRequest(image=b"img_" + b"0" * 48, task="ocr")
    async with serving() as channel:
        code, _ = await refused(VisionStub(channel).Predict(request))
    assert code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "request_message", "kind"),
    [
        ("Predict", pb.PredictRequest(task="ocr"), "answer"),
        ("Compare", pb.CompareRequest(task="ocr"), "comparison"),
        ("Analyze", pb.AnalyzeRequest(steps=[pb.Step(id="text", task="ocr")]), "analysis"),
    ],
)
async def test_several_images_over_grpc(name: str, request_message: Any, kind: str) -> None:
    async with serving() as channel:
        method = getattr(VisionStub(channel), name)
        request_message.images.extend([PNG, b"none", PNG])
        several = await method(request_message)
        request_message.images[:] = [b""] * 33
        with pytest.raises(grpc.aio.AioRpcError, match="33 images are sent; at most 32"):
            await method(request_message)
        request_message.images[:] = []
        request_message.image = PNG
        alone = await method(request_message)
    outcomes = several.outcomes
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == [kind, "error", kind]
    assert outcomes[1].error.code == "unsupported_image"
    for outcome in (outcomes[0], outcomes[2]):
        assert fields_of(getattr(outcome, kind)) == fields_of(alone)
    assert fields_of(several) == ["id", "outcomes"]


def fields_of(message: Any) -> list[str]:
    return [field.name for field, _ in message.ListFields()]


async def test_a_stream_is_about_one_image() -> None:
    async with serving() as channel:
        stub: Any = VisionStub(channel)
        for stream in (
            stub.PredictStream(pb.PredictRequest(images=[PNG])),
            stub.AnalyzeStream(pb.AnalyzeRequest(images=[PNG])),
        ):
            code, metadata = await refused(all_of(stream))
            assert (code, metadata["diptych-param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "images")


async def test_lists_over_grpc() -> None:
    async with serving() as channel:
        stub: Any = VisionStub(channel)
        models = (await stub.ListModels(pb.ListModelsRequest())).models
        task = (await stub.ListTasks(pb.ListTasksRequest())).tasks[2]
    assert [model.family for model in models] == ["florence2", "paligemma"]
    assert (task.id, task.result) == ("open_vocabulary_detection", "detections")
    assert "labels" in json.loads(task.parameters_json_schema)["properties"]


async def test_list_needs_a_key() -> None:
    async with serving(keys=api_keys(KEY)) as channel:
        code, _ = await refused(VisionStub(channel).ListModels(pb.ListModelsRequest()))
        health: Any = HealthStub(channel)
        watching = health.Watch(HealthCheckRequest())
        for answer in (await health.Check(HealthCheckRequest()), await watching.read()):
            assert answer.status == HealthCheckResponse.SERVING
        watching.cancel()
    assert code == grpc.StatusCode.UNAUTHENTICATED


async def test_health_before_the_start() -> None:
    async def is_ready() -> bool:
        return False

    settings = Settings(grpc_port=free_port())
    server = GrpcServer(make_core(), ApiKeys(None), settings, is_ready)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
        health: Any = HealthStub(channel)
        for service in ("", "diptych.v1.Vision"):
            request = HealthCheckRequest(service=service)
            for answer in (await health.Check(request), await health.Watch(request).read()):
                assert answer.status == HealthCheckResponse.NOT_SERVING
    await server.stop(0)


async def test_malformed_message() -> None:
    async with serving() as channel:
        for method in ("grpc.health.v1.Health/Check", "diptych.v1.Vision/ListModels"):
            for messages in ([b"\xff"], []):
                code, metadata = await refused(channel.stream_unary(f"/{method}")(iter(messages)))
                assert code == grpc.StatusCode.INVALID_ARGUMENT
                assert metadata["diptych-code"] == "invalid_request"


async def test_reflection() -> None:
    async def requests() -> AsyncIterator[ServerReflectionRequest]:
        for _ in range(3):
            yield ServerReflectionRequest(list_services="")

    async with serving() as channel:
        stub: Any = ServerReflectionStub(channel)  # knows no grpc.aio
        answers = await all_of(stub.ServerReflectionInfo(requests()))
    assert len(answers) == 3
    names = {service.name for service in answers[2].list_services_response.service}
    assert {"diptych.v1.Vision", "grpc.health.v1.Health"} <= names


async def error(
    core: Core | None = None, keys: ApiKeys | None = None, authorization: str | None = None
) -> grpc.aio.AioRpcError:
    """Return the error of a call, which is the same for Predict and PredictStream."""
    metadata = [("x-request-id", "mine"), ("traceparent", TRACEPARENT)]
    if authorization:
        metadata.append(("authorization", authorization))
    async with serving(core, keys) as channel:
        stub: Any = VisionStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(OCR, metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await all_of(stub.PredictStream(OCR, metadata=metadata))
    assert caught.value.code() == streamed.value.code()
    assert caught.value.details() == streamed.value.details()
    assert trailing(caught.value) == trailing(streamed.value)
    return caught.value


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY])
async def test_call_requires_an_accepted_key(authorization: str | None) -> None:
    failure = await error(keys=api_keys(KEY), authorization=authorization)
    assert failure.code() == grpc.StatusCode.UNAUTHENTICATED
    assert trailing(failure)["diptych-code"] == "unauthorized"


async def test_wrong_keys_by_address() -> None:
    keys = api_keys(KEY)
    for guess in range(10):
        with pytest.raises(ServiceError, match="not accepted"):
            keys.check(f"Bearer {guess}", "127.0.0.1")
    failure = await error(keys=keys, authorization="Bearer wrong")
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 <= int(trailing(failure)["retry-after"]) <= 6


async def test_accepted_key_of_a_call() -> None:
    async with serving(keys=api_keys(KEY, "requests_per_minute=1")) as channel:
        metadata = [("authorization", f"Bearer {KEY}")]
        vision: Any = VisionStub(channel)
        answer = await vision.Predict(OCR, metadata=metadata)
        code, _ = await refused(vision.ListModels(pb.ListModelsRequest(), metadata=metadata))
    assert (answer.text, code) == ("HELLO", grpc.StatusCode.RESOURCE_EXHAUSTED)


async def test_overload_has_retry_after() -> None:
    failure = await error(make_core(max_pending=0))
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    ids = {"x-request-id": "mine", "x-trace-id": TRACE_ID}
    assert trailing(failure) == {**ids, "diptych-code": "overloaded", "retry-after": "1"}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_refused_call_keeps_no_message(is_stream: bool) -> None:
    """Without the garbage collector, which may run minutes later."""
    request = pb.PredictRequest(image=bytes(1_000_000), task="ocr")
    async with serving() as channel:
        stub: Any = VisionStub(channel)

        async def refuse() -> None:
            call = all_of(stub.PredictStream(request)) if is_stream else stub.Predict(request)
            assert (await refused(call))[0] == grpc.StatusCode.INVALID_ARGUMENT

        await refuse()
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(8):
                await refuse()
            await asyncio.sleep(0.1)
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert kept_bytes < 3_000_000


OBJECT = {"box": [1.5, 2, 30.25, 40], "label": "a", "score": 0.5}
OBJECT_MESSAGE = OBJECT | {"box": {"x1": 1.5, "y1": 2.0, "x2": 30.25, "y2": 40.0}}


def fields(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


def test_message_about_a_view() -> None:
    detected = DetectionsResult((Detection(BOX, "a", 0.5),), True)
    piece = Piece("a", View((1, 2, 30, 40), detected))
    event = event_message(*prediction_event(piece, "id-1"))
    assert event.WhichOneof("event") == "text"
    view = {"view": ["1", "2", "30", "40"], "detections": {"detections": [OBJECT_MESSAGE]}}
    assert fields(event) == {"text": "a", "view": view}
    assert fields(event_message(*prediction_event(Piece("a"), "id-1"))) == {"text": "a"}
