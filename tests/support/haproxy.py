"""Debian's HAProxy with the shipped configuration, in front of given runners or a gateway."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.export_cli import ROOT
from tests.support.processes import is_open
from tests.support.running_service import free_port
from tests.support.waiting import running_program

FOLDER = ROOT / "deploy" / "haproxy"
CONFIGURATION = FOLDER / "haproxy.cfg"
MODELS = FOLDER / "models.cfg"
FRONT = FOLDER / "front.cfg"
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None,
    reason="no haproxy here: deploy/haproxy is NOT tested (apt-get install haproxy)",
)


@dataclass(frozen=True, slots=True)
class HaProxy:
    ports: Mapping[str, int]  # key: model
    status_url: str

    def url(self, model_id: str) -> str:
        return f"http://127.0.0.1:{self.ports[model_id]}"

    def is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.status_url}/healthz").is_success
        return False

    def num_ready(self, model_id: str) -> int:
        name = f'haproxy_backend_active_servers{{proxy="{model_id}"}} '
        metrics = httpx.get(f"{self.status_url}/metrics").raise_for_status().text
        return int(metrics.partition(name)[2].split()[0])


@dataclass(frozen=True, slots=True)
class Front:
    """A running HAProxy between clients and the gateway."""

    pid: int
    port: int
    grpc_port: int

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextmanager
def running_front(
    gateway: Mapping[str, str], folder: Path, dns_port: int | None = None
) -> Iterator[Front]:
    """Run HAProxy between clients and gateways, given by variables of front.cfg.

    A DNS server at `dns_port` takes the place of the host's.
    """
    port = free_port()
    grpc_port = free_port()
    front = {"FRONT_ADDRESS": f"127.0.0.1:{port}", "FRONT_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}"}
    configuration = FRONT.read_text(encoding="utf-8")
    if dns_port is not None:
        name_server = f"nameserver test 127.0.0.1:{dns_port}"
        configuration = configuration.replace("parse-resolv-conf", name_server)
    file = folder / FRONT.name
    file.write_text(configuration, encoding="utf-8")
    command = ["haproxy", "-db", "-f", str(file)]
    log = folder / "front.log"
    with running_program(command, lambda: is_open(port), log, {**front, **gateway}) as process:
        yield Front(process.pid, port, grpc_port)


@contextmanager
def haproxy(runners: Mapping[str, Sequence[str]], folder: Path) -> Iterator[HaProxy]:
    """Balance between the runners of each model, given by their URLs."""
    ports = {model_id: free_port() for model_id in runners}
    lines = []
    for model_id, urls in runners.items():
        lines += [f"listen {model_id}", f"    bind 127.0.0.1:{ports[model_id]}"]
        for number, url in enumerate(urls, 1):
            lines.append(f"    server runner{number} {urlsplit(url).netloc}")
    with running_haproxy("\n".join([*lines, ""]), ports, folder) as running:
        yield running


@contextmanager
def running_haproxy(
    models: str,
    ports: Mapping[str, int],
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[HaProxy]:
    (folder / "models.cfg").write_text(models, encoding="utf-8")
    status = f"127.0.0.1:{free_port()}"
    command = ["haproxy", "-db", "-f", str(CONFIGURATION), "-f", str(folder / "models.cfg")]
    running = HaProxy(ports, f"http://{status}")
    variables = {**(environment or {}), "STATUS_ADDRESS": status}
    with running_program(command, running.is_healthy, folder / "haproxy.log", variables):
        yield running
