"""The gRPC server: Vision, the standard health service, reflection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.admission.api_keys import ApiKeys
from service.inference.core import Core
from service.rpc.boundary import VISION, GrpcBoundary
from service.rpc.proto.vision_pb2_grpc import add_VisionServicer_to_server
from service.rpc.vision import VisionApi
from service.settings import Settings

logger = logging.getLogger(__name__)

_HEALTH_EVERY_S = 1.0
_FIELDS_BYTES = 100_000  # a message without its image
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
    certificate = settings.tls_certificate_file.read_bytes()
    return grpc.ssl_server_credentials([(key, certificate)])


class GrpcServer:
    """Listens from `start` to `stop`; its health is SERVING while `is_ready` returns True."""

    def __init__(
        self,
        core: Core,
        api_keys: ApiKeys,
        settings: Settings,
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._core = core
        self._api_keys = api_keys
        self._settings = settings
        self._is_ready = is_ready
        self._health = health.aio.HealthServicer()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        max_message_bytes = self._settings.max_body_bytes + _FIELDS_BYTES
        options = [
            *_OPTIONS,
            ("grpc.max_receive_message_length", max_message_bytes),
            *(_SEVERAL_GATEWAYS if self._settings.gateway_workers > 1 else _ONE_GATEWAY),
        ]
        boundary = GrpcBoundary(self._core, self._api_keys, self._settings)
        self._server = grpc.aio.server(interceptors=[boundary], options=options)
        add_VisionServicer_to_server(VisionApi(self._core), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (VISION, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{self._settings.host}:{self._settings.grpc_port}"
        credentials = grpc_credentials(self._settings)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())
        logger.info("gRPC is listening on %s:%d", self._settings.host, port)

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
            await self._set_health(states.SERVING if await self._is_ready() else states.NOT_SERVING)
            await asyncio.sleep(_HEALTH_EVERY_S)

    async def _set_health(self, status: int) -> None:
        for name in ("", VISION):
            await self._health.set(name, status)
