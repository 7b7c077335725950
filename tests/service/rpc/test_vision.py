"""Calls of each kind of method over fake runners: the service's own, health and reflection."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.admission.api_keys import ApiKeys
from service.errors import Unauthorized
from service.inference.core import Core
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import api_keys
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ID, PNG, make_core
from tests.support.grpc_channel import grpc_channel
from tests.support.trace_collector import TRACE_ID, TRACEPARENT
from wire.runner_messages import Failed

KEY = "secret"
OCR = pb.PredictRequest(image=PNG, task="ocr")


def called(
    call: Callable[[grpc.aio.Channel], Coroutine[Any, Any, Any]],
    core: Core | None = None,
    keys: ApiKeys | None = None,
) -> Any:
    """Return what `call` returns over a channel."""

    async def scenario() -> Any:
        async with (
            asyncio.timeout(20),
            grpc_channel(core or make_core(), keys or ApiKeys(None)) as channel,
        ):
            return await call(channel)

    return asyncio.run(scenario())


def refused(
    call: Callable[[grpc.aio.Channel], Coroutine[Any, Any, Any]],
    core: Core | None = None,
    keys: ApiKeys | None = None,
) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        called(call, core, keys)
    return caught.value


async def listed(channel: grpc.aio.Channel) -> Any:
    return await VisionStub(channel).ListModels(pb.ListModelsRequest())


def test_analysis_over_grpc() -> None:
    async def analyzed(channel: grpc.aio.Channel) -> tuple[Any, list[Any]]:
        steps = [
            pb.Step(id="things", task="object_detection"),
            pb.Step(id="text", task="ocr", each="things", view="crop", models=["florence-2-mini"]),
        ]
        request = pb.AnalyzeRequest(image=PNG, steps=steps)
        stub = VisionStub(channel)
        return await stub.Analyze(request), [event async for event in stub.AnalyzeStream(request)]

    analysis, (first, second, last) = called(analyzed)
    things, text = analysis.steps
    assert (things.id, len(things.answers), things.truncated) == ("things", 1, False)
    (answer,) = text.answers
    assert (answer.of, list(answer.view), answer.answer.text) == (0, [38, 77, 346, 308], "HELLO")
    assert [event.answer.step for event in (first, second)] == ["things", "text"]
    assert second.answer.answer.answer.text == "HELLO"
    assert [step.id for step in last.analysis.steps] == ["things", "text"]


def test_failed_step_over_grpc() -> None:
    async def analyzed(channel: grpc.aio.Channel) -> list[Any]:
        steps = [pb.Step(id="no", task="object_detection", models=["paligemma-mini"])]
        stream = VisionStub(channel).AnalyzeStream(pb.AnalyzeRequest(image=PNG, steps=steps))
        return [event async for event in stream]

    event, last = called(analyzed)
    (answer,) = last.analysis.steps[0].answers
    assert event.answer.answer == answer
    assert (answer.model, answer.error.code) == ("paligemma-mini", "unsupported_task")


def test_wrong_step_over_grpc() -> None:
    async def wrong(channel: grpc.aio.Channel) -> Any:
        steps = [pb.Step(id="a", task="ocr", each="b")]
        return await VisionStub(channel).Analyze(pb.AnalyzeRequest(image=PNG, steps=steps))

    error = refused(wrong)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailing = dict(error.trailing_metadata() or ())
    assert trailing["diptych-param"] == "steps[0].each"


def test_stored_image_over_grpc() -> None:
    async def named(channel: grpc.aio.Channel) -> Any:
        request = pb.PredictRequest(image=b"img_" + b"0" * 48, task="ocr")
        return await VisionStub(channel).Predict(request)

    assert refused(named).code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "request_message", "kind"),
    [
        ("Predict", pb.PredictRequest(task="ocr"), "answer"),
        ("Compare", pb.CompareRequest(task="ocr"), "comparison"),
        ("Analyze", pb.AnalyzeRequest(steps=[pb.Step(id="text", task="ocr")]), "analysis"),
    ],
)
def test_several_images_over_grpc(name: str, request_message: Any, kind: str) -> None:
    async def several(channel: grpc.aio.Channel) -> list[Any]:
        method = getattr(VisionStub(channel), name)
        request_message.images.extend([PNG, b"none", PNG])
        several = await method(request_message)
        request_message.images[:] = [b""] * 33
        with pytest.raises(grpc.aio.AioRpcError, match="33 images are sent; at most 32"):
            await method(request_message)
        request_message.images[:] = []
        request_message.image = PNG
        return [several, await method(request_message)]

    answers, alone = called(several)
    outcomes = [outcome.WhichOneof("outcome") for outcome in answers.outcomes]
    assert outcomes == [kind, "error", kind]
    assert answers.outcomes[1].error.code == "unsupported_image"
    for outcome in (answers.outcomes[0], answers.outcomes[2]):
        assert fields_of(getattr(outcome, kind)) == fields_of(alone)
    assert fields_of(answers) == ["id", "outcomes"]


def fields_of(message: Any) -> list[str]:
    return [field.name for field, _ in message.ListFields()]


@pytest.mark.parametrize("name", ["PredictStream", "AnalyzeStream"])
def test_a_stream_is_about_one_image(name: str) -> None:
    async def streamed(channel: grpc.aio.Channel) -> None:
        message = {"PredictStream": pb.PredictRequest, "AnalyzeStream": pb.AnalyzeRequest}[name]
        async for _ in getattr(VisionStub(channel), name)(message(images=[PNG])):
            pass

    error = refused(streamed)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert ("diptych-param", "images") in list(error.trailing_metadata())


async def healthy(channel: grpc.aio.Channel) -> Any:
    stub: Any = HealthStub(channel)
    return (await stub.Check(HealthCheckRequest())).status


def test_stream_over_grpc() -> None:
    async def events(channel: grpc.aio.Channel) -> list[pb.PredictEvent]:
        return [event async for event in VisionStub(channel).PredictStream(OCR)]

    *texts, last = called(events)
    assert "".join(event.text for event in texts) == last.answer.raw_text == "HELLO"
    assert all(event.WhichOneof("event") == "text" for event in texts)


def test_lists_over_grpc() -> None:
    async def tasks(channel: grpc.aio.Channel) -> Any:
        return await VisionStub(channel).ListTasks(pb.ListTasksRequest())

    assert [model.family for model in called(listed).models] == ["florence2", "paligemma"]
    task = called(tasks).tasks[2]
    assert (task.id, task.result) == ("open_vocabulary_detection", "detections")
    assert "labels" in json.loads(task.parameters_json_schema)["properties"]


def test_list_needs_a_key() -> None:
    keys = api_keys(KEY)
    assert refused(listed, keys=keys).code() == grpc.StatusCode.UNAUTHENTICATED
    assert called(healthy, keys=keys) == HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "call", [listed, lambda channel: VisionStub(channel).Predict(OCR)], ids=["list", "predict"]
)
def test_draining_admits_no_call(
    call: Callable[[grpc.aio.Channel], Coroutine[Any, Any, Any]],
) -> None:
    async def drained(channel: grpc.aio.Channel) -> Any:
        await core.places.close()
        return await call(channel)

    core = make_core()
    error = refused(drained, core)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert ("diptych-code", "not_ready") in list(error.trailing_metadata())


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "diptych.v1.Vision/ListModels"])
def test_malformed_message(method: str) -> None:
    async def malformed(channel: grpc.aio.Channel) -> Any:
        call: Any = channel.unary_unary(f"/{method}")
        return await call(b"\xff")

    error = refused(malformed)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert ("diptych-code", "invalid_request") in list(error.trailing_metadata())


def test_reflection() -> None:
    async def reflected(channel: grpc.aio.Channel) -> list[Any]:
        async def requests() -> AsyncIterator[ServerReflectionRequest]:
            for _ in range(3):
                yield ServerReflectionRequest(list_services="")

        # its stubs know no grpc.aio
        stub: Any = ServerReflectionStub(channel)  # type: ignore[arg-type]
        return [answer async for answer in stub.ServerReflectionInfo(requests())]

    answers = called(reflected)
    assert len(answers) == 3
    names = {service.name for service in answers[2].list_services_response.service}
    assert {"diptych.v1.Vision", "grpc.health.v1.Health"} <= names


def error(
    core: Core | None = None, keys: ApiKeys | None = None, authorization: str | None = None
) -> grpc.aio.AioRpcError:
    """Return the error of a call, which is the same for Predict and PredictStream."""

    async def ask() -> list[grpc.aio.AioRpcError]:
        metadata = [("x-request-id", "mine"), ("traceparent", TRACEPARENT)]
        if authorization:
            metadata.append(("authorization", authorization))
        async with grpc_channel(core or make_core(), keys or ApiKeys(None)) as channel:
            stub: Any = VisionStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as whole:
                await stub.Predict(OCR, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as streamed:
                [_ async for _ in stub.PredictStream(OCR, metadata=metadata)]
            return [whole.value, streamed.value]

    whole, streamed = asyncio.run(ask())
    assert (whole.code(), whole.details()) == (streamed.code(), streamed.details())
    assert trailing(whole) == trailing(streamed)
    return whole


def trailing(caught: grpc.aio.AioRpcError) -> dict[str, str]:
    return {str(name): str(value) for name, value in caught.trailing_metadata()}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", KEY])
def test_call_requires_an_accepted_key(authorization: str | None) -> None:
    refused = error(keys=api_keys(KEY), authorization=authorization)
    assert refused.code() == grpc.StatusCode.UNAUTHENTICATED
    assert trailing(refused)["diptych-code"] == "unauthorized"


def test_wrong_keys_by_address() -> None:
    keys = api_keys(KEY)
    for guess in range(10):
        with pytest.raises(Unauthorized):
            keys.check(f"Bearer {guess}", "127.0.0.1")
    refused = error(keys=keys, authorization="Bearer wrong")
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 1 <= int(trailing(refused)["retry-after"]) <= 6


def test_accepted_key_of_a_call() -> None:
    async def accepted(channel: grpc.aio.Channel) -> Any:
        metadata = [("authorization", f"Bearer {KEY}")]
        return await VisionStub(channel).Predict(OCR, metadata=metadata)

    assert called(accepted, keys=api_keys(KEY)).text == "HELLO"


def test_overload_has_retry_after() -> None:
    refused = error(make_core(max_pending=0))
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailing(refused) == {
        "x-request-id": "mine",
        "x-trace-id": TRACE_ID,
        "diptych-code": "overloaded",
        "retry-after": "1",
    }


NOT_FINITE = Failed(code="non_finite_logits", message="NaN")


@pytest.mark.parametrize(
    "decoder",
    [
        FakeDecoder({"What is the text in the image?": NOT_FINITE}),
        FakeDecoder({}, failure=ValueError("a secret")),
    ],
)
def test_internal_error_reveals_no_cause(decoder: FakeDecoder) -> None:
    broken = error(make_core(decoders={FLORENCE_ID: decoder}))
    assert broken.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(broken.details())
