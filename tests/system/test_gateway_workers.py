"""Two gateway processes share both ports: connections, metrics, a kill under load, a drain, a port
in use.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from export.checks.reference import Reference
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.endless_models import endless_models
from tests.support.export_cli import MODELS, ModelStore
from tests.support.forked_python import run as run_forked
from tests.support.load import load
from tests.support.lora import write_adapter
from tests.support.processes import is_alive
from tests.support.running_service import (
    RunningService,
    forked_service,
    free_port,
    service_environment,
)
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until
from wire.artifacts.adapter_folder import AdapterScan

MODEL = "florence-2-mini"
ADAPTER = "first"
SETTINGS = {"DIPTYCH_MODELS": MODEL, "DIPTYCH_GATEWAY_WORKERS": "2"}
FORM = {"task": "captioning", "model": MODEL}
NUM_CONNECTIONS = 24  # all in one of two processes by chance: 1 in 8 million
NUM_CLIENTS = 4
NUM_STREAMS = 12
STOP_S = 60


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """A service with two gateways and an adapter in its watched folder."""
    folder = tmp_path_factory.mktemp("workers")
    adapter = write_adapter(Reference.load(MODELS / MODEL).model, folder / "adapters" / ADAPTER, 0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    # the source of the catalog's entry
    named = config | {"base_model_name_or_path": f"models/{MODEL}"}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    # one that was just written is listed a second later
    wait_until(lambda: ADAPTER in AdapterScan(folder / "adapters").scan())
    settings = SETTINGS | {"DIPTYCH_ADAPTERS": str(folder / "adapters")}
    with forked_service(exported.home, folder / "service.log", **settings) as running:
        wait_until(lambda: num_listening(running) == 2)
        yield running


def gateways(service: RunningService) -> list[psutil.Process]:
    children = psutil.Process(service.process.pid).children()
    return [
        child
        for child in children
        if " ".join(child.cmdline()).split()[-2:] == ["--service-name", "diptych"]
    ]


def num_listening(service: RunningService) -> int:
    """Return the number of gateways that listen on both ports."""
    ports = {int(address.rpartition(":")[2]) for address in (service.url, service.grpc_address)}
    listening = []
    for gateway in gateways(service):
        found = gateway.net_connections("tcp")
        listening.append({each.laddr.port for each in found if each.status == psutil.CONN_LISTEN})
    return sum(ports <= each for each in listening)


def num_connections(service: RunningService, address: str) -> list[int]:
    """Return the number of clients' connections to a port in each gateway."""
    return [len(clients) for clients in clients_of_gateways(service, address)]


def clients_of_gateways(service: RunningService, address: str) -> list[set[int]]:
    """Return the ports of clients that are connected to a port of each gateway."""
    port = int(address.rpartition(":")[2])
    ports: list[set[int]] = []
    for gateway in gateways(service):
        found = [each for each in gateway.net_connections("tcp") if each.laddr.port == port]
        ports.append({each.raddr.port for each in found if each.status == psutil.CONN_ESTABLISHED})
    return ports


def ask(service: RunningService) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/predict", data=FORM, files={"image": scene_png()}, timeout=STOP_S
    )


def test_connections_of_both_ports_go_to_both_processes(service: RunningService) -> None:
    with ExitStack() as stack:
        for _ in range(NUM_CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=service.url, timeout=STOP_S))
            assert client.get("/v1/models").is_success
            options = [("grpc.use_local_subchannel_pool", 1)]  # else channels share one connection
            channel = stack.enter_context(grpc.insecure_channel(service.grpc_address, options))
            stub: Any = VisionStub(channel)
            stub.ListModels(pb.ListModelsRequest(), timeout=STOP_S)
        rest = num_connections(service, service.url)
        rpc = num_connections(service, service.grpc_address)
    print(f"connections of each process: REST {rest}, gRPC {rpc}")
    assert min(rest) > 0
    assert min(rpc) > 0


def test_few_clients_spread_over_both_processes(service: RunningService) -> None:
    """A connection is closed after its answer while the other process has too few."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=service.url, timeout=STOP_S))
            for _ in range(NUM_CLIENTS)
        ]

        def are_spread() -> bool:
            assert all(client.get("/v1/models").is_success for client in clients)
            return min(num_connections(service, service.url)) == NUM_CLIENTS // 2

        wait_until(are_spread)


@pytest.mark.long
def test_a_connection_of_grpc_is_replaced_after_a_minute_without_a_lost_call(
    service: RunningService,
) -> None:
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub: Any = VisionStub(channel)

        def clients() -> set[int]:
            stub.ListModels(pb.ListModelsRequest(), timeout=STOP_S)
            return set().union(*clients_of_gateways(service, service.grpc_address))

        first = clients()
        wait_until(lambda: first.isdisjoint(clients()), timeout_s=90, pause_s=0.2)


def test_both_processes_list_the_adapters_that_were_there_at_the_start(
    service: RunningService,
) -> None:
    for _ in range(NUM_CONNECTIONS):
        with service.client() as http:
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [
                MODEL,
                ADAPTER,
            ]


def test_each_process_has_the_metrics_of_both(service: RunningService) -> None:
    before = metric(service, "diptych_requests_total", status="ok")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(service), range(NUM_CONNECTIONS)))
    assert {answer.status_code for answer in answers} == {200}
    counted = {metric(service, "diptych_requests_total", status="ok") - before for _ in range(8)}
    assert counted == {NUM_CONNECTIONS}


def test_a_killed_process_is_restarted_and_the_other_answers_meanwhile(
    service: RunningService,
) -> None:
    with load(service.url, 10, models=[MODEL]) as asked:
        asked.wait_for_more(20)
        killed = gateways(service)[0].pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_alive(killed))
        assert ask(service).status_code == 200
        wait_until(lambda: num_listening(service) == 2)
        asked.wait_for_more(20)
    assert asked.kinds().keys() <= {"right", "broken"}, asked.others()
    assert len(asked.others()) <= 10


def test_a_drain_completes_the_streams_of_both_processes(
    exported: ModelStore, tmp_path: Path
) -> None:
    store = endless_models(exported, tmp_path / "bentoml")
    form = FORM | {"stream": "true", "max_new_tokens": "200"}
    with (
        forked_service(store.home, tmp_path / "service.log", **SETTINGS) as service,
        ExitStack() as stack,
    ):
        wait_until(lambda: num_listening(service) == 2)
        streams = []
        for _ in range(NUM_STREAMS):
            client = stack.enter_context(httpx.Client(timeout=STOP_S))
            call = client.stream(
                "POST", f"{service.url}/v1/predict", data=form, files={"image": scene_png()}
            )
            chunks = stack.enter_context(call).iter_text()
            streams.append((next(chunks), chunks))
        service.process.send_signal(signal.SIGTERM)
        ends = [parse_events(first + "".join(chunks))[-1] for first, chunks in streams]
        assert [(name, end["usage"]["generated_tokens"]) for name, end in ends] == [
            ("result", 200)
        ] * NUM_STREAMS
        assert service.process.wait(STOP_S) == 0
        assert service.log.read_text().count("ended with status") == 0


@pytest.mark.parametrize(
    ("port", "num_gateways"),
    [
        ("DIPTYCH_PORT", "2"),
        ("DIPTYCH_GRPC_PORT", "1"),
        pytest.param("DIPTYCH_PORT", "1", marks=pytest.mark.long),
        pytest.param("DIPTYCH_GRPC_PORT", "2", marks=pytest.mark.long),
    ],
)
def test_a_port_in_use_prevents_the_start(
    exported: ModelStore, port: str, num_gateways: str
) -> None:
    """A program that would share it, as another service with several gateways would."""
    ports = {"DIPTYCH_PORT": str(free_port()), "DIPTYCH_GRPC_PORT": str(free_port())}
    settings = SETTINGS | ports | {"DIPTYCH_GATEWAY_WORKERS": num_gateways}
    environment = service_environment(exported.home, **settings)
    with socket.create_server(("127.0.0.1", int(ports[port])), reuse_port=True):
        start = run_forked(["-m", "service.supervision.supervisor"], environment, STOP_S)
    assert start.returncode == 1
    (line,) = start.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{ports[port]}" in line
    assert line.endswith(f"; {port} chooses another port")
