"""Debian's HAProxy with the shipped configuration, in front of given runners."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import free_port
from tests.support.waiting import wait_until_ready

FOLDER = ROOT / "deploy" / "haproxy"
CONFIGURATION = FOLDER / "haproxy.cfg"
MODELS = FOLDER / "models.cfg"
FRONT = FOLDER / "front.cfg"
HAS_HAPROXY = shutil.which("haproxy") is not None
MISSING_HAPROXY = "no haproxy here: deploy/haproxy is NOT tested (apt-get install haproxy)"
needs_haproxy = pytest.mark.skipif(not HAS_HAPROXY, reason=MISSING_HAPROXY)

_STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class HaProxy:
    """A running HAProxy."""

    pid: int
    ports: Mapping[str, int]  # key: model
    status_url: str
    log: Path

    def url(self, model_id: str) -> str:
        """Return the URL of a model's runners."""
        return f"http://127.0.0.1:{self.ports[model_id]}"

    @property
    def runner_urls(self) -> str:
        """Return the value of DIPTYCH_RUNNER_URLS."""
        return ",".join(f"{model_id}={self.url(model_id)}" for model_id in self.ports)

    def is_healthy(self) -> bool:
        """Return True if HAProxy itself answers."""
        try:
            return httpx.get(f"{self.status_url}/healthz").is_success
        except httpx.TransportError:
            return False

    def processor_s(self) -> float:
        """Return the processor time that the process has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def num_ready(self, model_id: str) -> int:
        """Return the number of a model's runners that receive calls."""
        name = f'haproxy_backend_active_servers{{proxy="{model_id}"}} '
        metrics = httpx.get(f"{self.status_url}/metrics").raise_for_status().text
        return next(
            int(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name)
        )


@dataclass(frozen=True, slots=True)
class Front:
    """A running HAProxy between clients and the gateway."""

    pid: int
    port: int
    grpc_port: int


@contextmanager
def running_front(gateway: Mapping[str, str], folder: Path) -> Iterator[Front]:
    """Run HAProxy with the shipped configuration between clients and a gateway, given by variables
    of front.cfg.
    """
    port = free_port()
    grpc_port = free_port()
    addresses = {
        "FRONT_ADDRESS": f"127.0.0.1:{port}",
        "FRONT_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}",
    }
    log_file = folder / "front.log"
    command = ["haproxy", "-db", "-f", str(FRONT)]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **addresses, **gateway}, stdout=log, stderr=log
        )
    try:
        wait_until_ready(lambda: _is_open(port), process, log_file)
        yield Front(process.pid, port, grpc_port)
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def haproxy(runners: Mapping[str, Sequence[str]], folder: Path) -> Iterator[HaProxy]:
    """Balance between the runners of each model, given by their URLs; yield when it answers, stop
    at the end.
    """
    ports = {model_id: free_port() for model_id in runners}
    sections = [_section(model_id, ports[model_id], urls) for model_id, urls in runners.items()]
    with running_haproxy("\n".join(sections), ports, folder) as running:
        yield running


def _section(model_id: str, port: int, urls: Sequence[str]) -> str:
    servers = [
        f"    server runner{number} {urlsplit(url).netloc}" for number, url in enumerate(urls, 1)
    ]
    return "\n".join([f"listen {model_id}", f"    bind 127.0.0.1:{port}", *servers, ""])


@contextmanager
def running_haproxy(
    models: str,
    ports: Mapping[str, int],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[HaProxy]:
    """Run HAProxy with the shipped configuration, and `models` as the second file."""
    (folder / "models.cfg").write_text(models, encoding="utf-8")
    status = f"127.0.0.1:{free_port()}"
    command = ["haproxy", "-db", "-f", str(CONFIGURATION), "-f", str(folder / "models.cfg")]
    variables = {**os.environ, **(environment or {}), "STATUS_ADDRESS": status}
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    running = HaProxy(process.pid, ports, f"http://{status}", folder / "haproxy.log")
    try:
        wait_until_ready(running.is_healthy, process, running.log)
        yield running
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
