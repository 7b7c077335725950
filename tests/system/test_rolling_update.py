"""A rolling update of gateways with the numbers of deploy/kubernetes: pods with the proxy in front,
behind a balancer of connections as a Service is one.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from tests.support.export_cli import ROOT, ModelStore
from tests.support.haproxy import Front, needs_haproxy, running_front
from tests.support.processes import is_alive, is_open
from tests.support.running_service import RunningService, forked_service, free_port
from tests.support.waiting import running_program, wait_until
from tests.system.load import load
from tests.system.replicas import MODEL

NUM_CLIENTS = 8
DEPLOYMENT: dict[str, Any] = next(
    yaml.safe_load_all((ROOT / "deploy/kubernetes/base/gateway.yaml").read_text("utf-8"))
)["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
(SIDECAR,) = POD["initContainers"]
PRE_STOP_S = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
NODES_S = 3  # until nodes send no new connections to a pod that ends
SERVICE = """
global
    stats socket {folder}/admin level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 90s
    timeout server 90s
listen service
    bind 127.0.0.1:{port}
    server-template pod 1-4 127.0.0.1:1 disabled
"""


@dataclass(frozen=True, slots=True)
class Pod:
    """A service with the proxy in front of it."""

    name: str
    service: RunningService
    front: Front

    def end(self, balancer: "Balancer") -> None:
        """End as a kubelet ends a pod: the hooks, SIGTERM, then the sidecar."""
        end_s = time.monotonic() + POD["terminationGracePeriodSeconds"]
        os.kill(self.front.pid, signal.SIGUSR1)
        time.sleep(NODES_S)
        balancer.remove(self)
        time.sleep(PRE_STOP_S - NODES_S)
        self.service.process.send_signal(signal.SIGTERM)
        assert self.service.process.wait(end_s - time.monotonic()) == 0
        wait_until(lambda: not is_alive(self.front.pid), end_s - time.monotonic())


@dataclass(frozen=True, slots=True)
class Balancer:
    """A Service: it balances connections, repeats nothing and cuts none."""

    url: str
    admin: str

    def add(self, pod: Pod) -> None:
        server = f"set server service/{pod.name}"
        self._command(f"{server} addr 127.0.0.1 port {pod.front.port}; {server} state ready")

    def remove(self, pod: Pod) -> None:
        self._command(f"set server service/{pod.name} state maint")

    def _command(self, line: str) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(self.admin)
            admin.sendall(f"{line}\n".encode())
            answer = admin.recv(4096).strip()
        assert not answer or b"changed" in answer, answer


@contextmanager
def running_balancer(folder: Path) -> Iterator[Balancer]:
    port = free_port()
    file = folder / "service.cfg"
    file.write_text(SERVICE.format(folder=folder, port=port))
    command = ["haproxy", "-db", "-f", str(file)]
    with running_program(command, lambda: is_open(port), folder / "service.log"):
        yield Balancer(f"http://127.0.0.1:{port}", str(folder / "admin"))


@pytest.mark.long
@needs_haproxy
def test_update_of_gateways_loses_nothing(exported: ModelStore, tmp_path: Path) -> None:
    assert DEPLOYMENT["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}

    def start(name: str) -> Pod:
        folder = tmp_path / name
        folder.mkdir()
        service = stack.enter_context(
            forked_service(exported.home, folder / "log", DIPTYCH_MODELS=MODEL)
        )
        rest, grpc = service.url, f"//{service.grpc_address}"
        gateway = {
            **{variable["name"]: variable["value"] for variable in SIDECAR["env"]},
            "GATEWAY_PORT": str(urlsplit(rest).port),
            "GATEWAY_GRPC_PORT": str(urlsplit(grpc).port),
        }
        pod = Pod(name, service, stack.enter_context(running_front(gateway, folder)))
        assert httpx.get(f"http://127.0.0.1:{pod.front.port}/readyz").is_success
        balancer.add(pod)
        return pod

    with ExitStack() as stack:
        balancer = stack.enter_context(running_balancer(tmp_path))
        first, second = start("pod1"), start("pod2")
        with load(balancer.url, NUM_CLIENTS, [MODEL]) as clients:
            for pod, name in ((first, "pod3"), (second, "pod4")):
                clients.wait_for_more(2 * NUM_CLIENTS)
                start(name)
                pod.end(balancer)
            clients.wait_for_more(2 * NUM_CLIENTS)
        assert set(clients.kinds()) == {"right"}, clients.failures()
