"""A service started for an evaluation: `python -m service` on a free local port, stopped at the
end; and `diptych`.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 600
_STOP_TIMEOUT_S = 60
_REQUEST_TIMEOUT_S = 60


@contextmanager
def service_process(num_clients: int, **settings: str) -> Iterator[httpx.Client]:
    """Start the service with `settings` (environment variables) and yield a client once it is
    ready.

    Raise RuntimeError if it exits first or is not ready within `_START_TIMEOUT_S`.
    """
    port = _free_port()
    own = {"DIPTYCH_HOST": "127.0.0.1", "DIPTYCH_PORT": str(port), "DIPTYCH_GRPC_PORT": "0"}
    environment = os.environ | settings | own
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(
            base_url=url, timeout=_REQUEST_TIMEOUT_S, limits=limits, trust_env=False
        ) as client:
            _wait_until_ready(client, process)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_TIMEOUT_S)


def run_diptych(client: httpx.Client, *words: str | Path) -> None:
    """Run the client's command line, as requirements-dev.txt installs it, against the service of
    `client`.
    """
    diptych = Path(sys.executable).with_name("diptych")
    command = [diptych, "--url", str(client.base_url), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the progress bar is on stderr


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not _is_ready(client):
        if process.poll() is not None:
            raise RuntimeError(
                f"the service exited with status {process.returncode} before it was ready"
            )
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the service was not ready within {_START_TIMEOUT_S} s")
        time.sleep(0.2)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
