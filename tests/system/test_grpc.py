"""The gRPC port of the running service: the answers of REST, its errors, health and reflection,
cancelled calls.
"""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.system.test_answers import post_form

TIMEOUT_S = 60


@pytest.fixture
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.grpc_address) as opened:
        yield opened


@pytest.fixture
def vision(channel: grpc.Channel) -> Any:
    return VisionStub(channel)


def result_of_rest(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result of REST in the shape that it has as a message."""
    if "text" in result:
        return result
    ((kind, items),) = result.items()
    return {kind: [_item(item) for item in items]}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    shown = dict(item)
    if "box" in shown:
        shown["box"] = dict(zip(("x1", "y1", "x2", "y2"), shown["box"], strict=True))
    if "quad" in shown:
        shown["quad"] = [{"x": x, "y": y} for x, y in shown["quad"]]
    if "polygons" in shown:
        rings = []
        for ring in shown["polygons"]:
            rings.append({"points": [{"x": x, "y": y} for x, y in ring]})
        shown["polygons"] = {"rings": rings}
    if "mask" in shown:
        height, width = shown["mask"]["size"]
        shown["mask"] = {"height": height, "width": width, "counts": shown["mask"]["counts"]}
    return shown


def shown(answer: pb.Answer) -> dict[str, Any]:
    """Return the result of a message as JSON values, its numbers as numbers."""
    kind = answer.WhichOneof("result")
    if kind == "text":
        return {"text": answer.text}
    message = getattr(answer, kind)
    values = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    items = values[kind]
    for item in items:
        if "mask" in item:
            item["mask"] |= {name: int(item["mask"][name]) for name in ("height", "width")}
    return {kind: items}


def test_facts_of_an_answer_are_those_of_rest(client: httpx.Client, vision: Any) -> None:
    fields = {"task": "object_detection"}
    expected = post_form(client, "/v1/predict", scene_png(), fields).json()
    request = pb.PredictRequest(image=scene_png(), task="object_detection")
    metadata = [("x-request-id", "mine-1")]
    answer = vision.Predict(request, timeout=TIMEOUT_S, metadata=metadata)
    assert answer.id == "mine-1"
    assert {name: getattr(answer.usage, name) for name in expected["usage"]} == expected["usage"]
    assert (answer.image.width, answer.image.height) == (320, 240)
    assert answer.vision_cache == "hit"
    assert answer.timings_ms.total > 0


def test_models_and_tasks_are_those_of_rest(client: httpx.Client, vision: Any) -> None:
    models = vision.ListModels(pb.ListModelsRequest(), timeout=TIMEOUT_S).models
    listed = client.get("/v1/models").json()["data"]
    assert [model.id for model in models] == [row["id"] for row in listed]
    assert [list(model.tasks) for model in models] == [row["tasks"] for row in listed]
    assert [model.precision for model in models] == [row["precision"] for row in listed]
    tasks = vision.ListTasks(pb.ListTasksRequest(), timeout=TIMEOUT_S).tasks
    rows = client.get("/v1/tasks").json()["data"]
    assert [(task.id, list(task.models)) for task in tasks] == [
        (row["id"], row["models"]) for row in rows
    ]


def test_health_says_that_the_service_serves(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", "diptych.v1.Vision", "inference.GRPCInferenceService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_alone_tells_how_to_call(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {"diptych.v1.Vision", "inference.GRPCInferenceService"} <= set(database.get_services())
    described = database.FindFileContainingSymbol("diptych.v1.Vision")
    methods = {method.name: method.server_streaming for method in described.service[0].method}
    unary = dict.fromkeys(("Predict", "Compare", "Analyze", "ListModels", "ListTasks"), False)
    assert methods == unary | {"PredictStream": True, "AnalyzeStream": True}


def test_a_message_above_the_limit_is_refused(vision: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        vision.Predict(pb.PredictRequest(image=bytes(21_000_000), task="ocr"), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
