"""The gRPC server from its start to its stop: health, and calls in flight."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.admission.api_keys import ApiKeys
from service.inference.core import Core
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from service.rpc.server import GrpcServer
from service.settings import Settings
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PNG, make_core, until
from tests.support.running_service import free_port

STATES = health_pb2.HealthCheckResponse
LIMIT_S = 60  # far above the time of a call


@asynccontextmanager
async def started(
    core: Core, *, are_ready: bool = True
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    async def is_ready() -> bool:
        return are_ready

    settings = Settings(grpc_port=free_port())
    server = GrpcServer(core, ApiKeys(None), settings, is_ready)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            yield server, channel
    finally:
        await server.stop(0)


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(request, timeout=LIMIT_S)
    watched = await stub.Watch(request, timeout=LIMIT_S).read()
    assert watched.status == answer.status
    return int(answer.status)


async def test_health_of_the_server() -> None:
    for are_ready, state in ((True, STATES.SERVING), (False, STATES.NOT_SERVING)):
        async with started(make_core(), are_ready=are_ready) as (server, channel):
            for service in ("", "diptych.v1.Vision"):
                assert await health(channel, service) == state
            await server.set_not_serving()
            assert await health(channel) == STATES.NOT_SERVING


async def test_calls_in_flight_end_before_a_stop() -> None:
    released = asyncio.Event()
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=released)
    async with started(make_core(decoders={FLORENCE_ID: decoder})) as (server, channel):
        stub: Any = VisionStub(channel)
        request = pb.PredictRequest(image=PNG, task="ocr")
        calls = [stub.Predict(request, timeout=LIMIT_S) for _ in range(2)]
        await until(lambda: decoder.num_waiting == len(calls))
        stopping = asyncio.create_task(server.stop(LIMIT_S))
        done, _ = await asyncio.wait([stopping], timeout=0.2)
        assert not done
        released.set()
        answers = [await call for call in calls]
        await stopping
    assert [answer.raw_text for answer in answers] == ["HELLO", "HELLO"]
