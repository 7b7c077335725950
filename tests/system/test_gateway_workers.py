"""Two gateway processes share both ports: connections, metrics, a kill under load."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.export_cli import ModelStore
from tests.support.load import load
from tests.support.processes import is_alive
from tests.support.running_service import RunningService, forked_service
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"
NUM_REQUESTS = 24  # all in one of two processes by chance: 1 in 8 million
NUM_CLIENTS = 4


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    settings = {"DIPTYCH_MODELS": MODEL, "DIPTYCH_GATEWAY_WORKERS": "2"}
    with forked_service(exported.home, folder / "service.log", **settings) as running:
        wait_until(lambda: num_listening(running) == 2)
        yield running


def gateways(service: RunningService) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children()
    suffix = "--service-name diptych"
    return [child for child in children if " ".join(child.cmdline()).strip().endswith(suffix)]


def num_listening(service: RunningService) -> int:
    """Return the number of gateways that listen on both ports."""
    ports = {int(address.rpartition(":")[2]) for address in (service.url, service.grpc_address)}
    num = 0
    for gateway in gateways(service):
        open_ports = set[int]()
        for connection in gateway.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                open_ports.add(connection.laddr.port)
        num += ports <= open_ports
    return num


def client_ports(service: RunningService) -> list[set[int]]:
    """Return the ports of the HTTP clients that are connected to each gateway."""
    port = int(service.url.rpartition(":")[2])
    clients = []
    for gateway in gateways(service):
        connected = set[int]()
        for connection in gateway.net_connections("tcp"):
            if connection.laddr.port == port and connection.status == psutil.CONN_ESTABLISHED:
                connected.add(connection.raddr.port)
        clients.append(connected)
    return clients


def test_few_clients_spread_over_both_processes(service: RunningService) -> None:
    """A connection is closed after its answer while the other process has too few."""
    with ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(NUM_CLIENTS)]

        def are_spread() -> bool:
            assert all(client.get("/v1/models").is_success for client in clients)
            return min(map(len, client_ports(service))) == NUM_CLIENTS // 2

        wait_until(are_spread)


def ask(service: RunningService) -> httpx.Response:
    return service.predict(task="captioning", model=MODEL)


def test_each_process_has_the_metrics_of_both(service: RunningService) -> None:
    before = metric(service, "diptych_requests_total", status="ok")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(service), range(NUM_REQUESTS)))
    assert all(answer.is_success for answer in answers)
    counts: Any = {metric(service, "diptych_requests_total", status="ok") for _ in range(8)}
    assert counts == {before + NUM_REQUESTS}


def test_other_process_answers_beside_a_killed_one(service: RunningService) -> None:
    with load(service.url, 10, models=[MODEL]) as clients:
        clients.wait_for_more(20)
        killed = gateways(service)[0].pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_alive(killed))
        assert ask(service).status_code == 200
        wait_until(lambda: num_listening(service) == 2)
        clients.wait_for_more(20)
    assert clients.kinds().keys() <= {"right", "broken"}, clients.failures()
    assert len(clients.failures()) <= 10
