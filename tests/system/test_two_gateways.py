"""Two gateways share both ports, connections and metrics; one is killed meanwhile."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.export_cli import ModelStore
from tests.support.processes import is_alive
from tests.support.running_service import RunningService, forked_service
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.service_metrics import metric
from tests.system.test_answers import FLORENCE

CAPTION: dict[str, Any] = {"task": "captioning", "model": FLORENCE}
NUM_REQUESTS = 24  # all in one of two processes by chance: 1 in 8 million
NUM_CLIENTS = 4


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    settings = {"DIPTYCH_GATEWAY_WORKERS": "2"}
    with forked_service(exported.home, folder / "service.log", **settings) as running:
        wait_until(lambda: num_listening(running) == 2)
        yield running


def connections(service: RunningService, status: str) -> dict[int, list[int]]:
    """Return the local ports of the connections of each gateway, by its process."""
    ports = {}
    for child in psutil.Process(service.process.pid).children():
        if " ".join(child.cmdline()).strip().endswith("--service-name diptych"):
            tcp = child.net_connections("tcp")
            ports[child.pid] = [socket.laddr.port for socket in tcp if socket.status == status]
    return ports


def num_listening(service: RunningService) -> int:
    """Return the number of gateways that listen on both ports."""
    ports = {int(address.rpartition(":")[2]) for address in (service.url, service.grpc_address)}
    return sum(map(ports.issubset, connections(service, psutil.CONN_LISTEN).values()))


def test_few_clients_spread_over_both_processes(service: RunningService) -> None:
    """A connection is closed after its answer while the other process has too few."""
    port = int(service.url.rpartition(":")[2])
    with ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(NUM_CLIENTS)]

        def are_spread() -> bool:
            assert all(client.get("/v1/models").is_success for client in clients)
            connected = connections(service, psutil.CONN_ESTABLISHED).values()
            return min(ports.count(port) for ports in connected) == NUM_CLIENTS // 2

        wait_until(are_spread)


@pytest.mark.long
def test_grpc_connection_is_replaced_after_a_minute(service: RunningService) -> None:
    """Its calls in flight go on."""
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(service.grpc_address) as channel:
        channel.subscribe(states.append)
        health: Any = health_pb2_grpc.HealthStub(channel)
        call = health.Watch(health_pb2.HealthCheckRequest())
        next(call)
        wait_until(lambda: states[-1] is grpc.ChannelConnectivity.IDLE, 75)
        assert call.is_active()


def test_each_process_has_the_metrics_of_both(service: RunningService) -> None:
    before = metric(service, "diptych_requests_total", status="ok")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.predict(**CAPTION), range(NUM_REQUESTS)))
    assert all(answer.is_success for answer in answers)
    counts = {metric(service, "diptych_requests_total", status="ok") for _ in range(8)}
    assert counts == {before + NUM_REQUESTS}


def test_other_process_answers_beside_a_killed_one(service: RunningService) -> None:
    with load(service.url, 10, models=[FLORENCE]) as clients:
        clients.wait_for_more(20)
        killed = next(iter(connections(service, psutil.CONN_LISTEN)))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_alive(killed))
        assert service.predict(**CAPTION).is_success
        wait_until(lambda: num_listening(service) == 2)
        clients.wait_for_more(20)
    assert clients.kinds().keys() <= {"right", "broken"}, clients.failures()
    assert len(clients.failures()) <= 10
