"""A service started for an evaluation on a free local port."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from loadtest.processes import ROOT, Launch, free_port, running

_REQUEST_TIMEOUT_S = 60


@contextmanager
def service_process(num_clients: int, **settings: str) -> Iterator[httpx.Client]:
    """Start the service with `settings` (environment) and yield a client once it is ready.

    Its log is build/evaluation.log. Raise `ServerError` if it is never ready.
    """
    port = free_port()
    own = {"DIPTYCH_HOST": "127.0.0.1", "DIPTYCH_PORT": str(port), "DIPTYCH_GRPC_PORT": "0"}
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", settings | own)
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    with (
        running(launch, ROOT / "build" / "evaluation.log"),
        httpx.Client(
            base_url=launch.url, timeout=_REQUEST_TIMEOUT_S, limits=limits, trust_env=False
        ) as client,
    ):
        yield client
