"""What encoder and decoder services have in common: BentoML's options, what stands before their APIs, /metrics."""

import asyncio
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runners.builds import LoadedBuild, OnlyOfBuild
from runners.json_bodies import JsonBodies
from runners.traced_calls import TracedCalls

NO_ACCESS_LOG = {"access": {"enabled": False}}  # the gateway writes the one line of a request
# Each of BentoML's layers around a call costs every request; what they count and trace the gateway's own do too.
NO_TRACING = {"excluded_urls": "."}


def runner_service(name: str, runner: type, timeout_s: int, loaded: LoadedBuild) -> Any:
    """Return the service of a runner's class, for a socket behind a gateway, or a port that only gateways reach.

    BentoML's `metrics` would count each call and answer /metrics; here that is answered without the counting.
    """
    service = bentoml.service(
        name=name,
        traffic={"timeout": timeout_s},
        logging=NO_ACCESS_LOG,
        metrics={"enabled": False},
        tracing=NO_TRACING,
    )(runner)
    service.add_asgi_middleware(TracedCalls)
    service.add_asgi_middleware(OnlyOfBuild, loaded=loaded)
    service.add_asgi_middleware(JsonBodies)
    service.mount_asgi_app(Starlette(routes=[Route("/metrics", _metrics)]))
    return service


async def _metrics(_request: Request) -> Response:
    client = BentoMLContainer.metrics_client.get()
    return Response(await asyncio.to_thread(client.generate_latest), media_type=client.CONTENT_TYPE_LATEST)
