"""The gRPC server over a core, on a free port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from service.admission.api_keys import ApiKeys
from service.grpc_server import GrpcServer
from service.inference.core import Core
from service.settings import Settings
from tests.support.running_service import free_port


async def _ready() -> bool:
    return True


@asynccontextmanager
async def grpc_channel(core: Core, api_keys: ApiKeys) -> AsyncIterator[grpc.aio.Channel]:
    settings = Settings(grpc_port=free_port())
    server = GrpcServer(core, api_keys, settings, _ready)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            yield channel
    finally:
        await server.stop(0)
