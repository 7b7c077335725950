"""Two gateways share both ports, connections, metrics, and the batches of OpenAI's own Python
package; processes are killed meanwhile.
"""

import base64
import json
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import openai
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai.types import Batch

from tests.support.export_cli import ModelStore
from tests.support.processes import is_alive
from tests.support.running_service import GATEWAY, RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.service_metrics import metric
from tests.system.test_answers import FLORENCE, PALIGEMMA

ENDED = ("completed", "failed", "cancelled", "expired")
END_S = 120
URLS = [f"data:image/png;base64,{base64.b64encode(scene_png(n)).decode()}" for n in range(10)]
CAPTION: dict[str, Any] = {"task": "captioning", "model": FLORENCE}
NUM_REQUESTS = 24  # all in one of two processes by chance: 1 in 8 million
NUM_CLIENTS = 4


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    settings = {"DIPTYCH_BATCHES_FOLDER": str(folder / "store"), "DIPTYCH_GATEWAY_WORKERS": "2"}
    with forked_service(exported.home, folder / "service.log", **settings) as running:
        wait_until(lambda: num_listening(running) == 2)
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=5) as client:
        yield client


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


def request_line(number: int, model: str = FLORENCE) -> dict[str, Any]:
    body = {"image": URLS[number % len(URLS)], "task": "captioning", "model": model}
    request = {"method": "POST", "url": "/v1/predict", "body": body}
    return {"custom_id": f"request-{number}"} | request


def create(client: openai.OpenAI, lines: Sequence[dict[str, Any]]) -> Batch:
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    endpoint: Any = "/v1/predict"
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def num_completed(client: openai.OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.completed


def output(client: openai.OpenAI, batch: Batch) -> dict[str, Any]:
    """Wait for a batch; return the bodies of its answers by their custom ids, none of which is
    twice.
    """
    wait_until(lambda: client.batches.retrieve(batch.id).status in ENDED, END_S)
    whole = client.batches.retrieve(batch.id)
    assert (whole.status, whole.error_file_id, whole.errors) == ("completed", None, None)
    assert whole.output_file_id is not None
    lines = client.files.content(whole.output_file_id).text.splitlines()
    answers = {}
    for line in map(json.loads, lines):
        answers[line["custom_id"]] = line["response"]["body"]
    assert len(answers) == len(lines) == num_completed(client, batch)
    return answers


def online_text(service: RunningService, line: dict[str, Any]) -> Any:
    with service.client() as http:
        answer = http.post("/v1/predict", json=line["body"]).raise_for_status().json()
    return answer["raw_text"]


def test_answers_are_those_of_the_online_endpoints(
    service: RunningService, client: openai.OpenAI
) -> None:
    lines = [request_line(number) for number in range(20)]
    answers = output(client, create(client, lines))
    assert len(answers) == 20
    for line in lines[: len(URLS)]:
        assert answers[line["custom_id"]]["raw_text"] == online_text(service, line)
    assert metric(service, "diptych_requests_total", api="batch", status="ok") == 20
    wait_until(lambda: metric(service, "diptych_batch_requests_waiting") == 0)


def leader(service: RunningService) -> int:
    """Return the process that holds the lock of the store, which the log names."""
    log = service.log.read_text().splitlines()
    line = [line for line in log if "running the batches in" in line][-1]
    inode = Path(line.rpartition(" in ")[2], "running.lock").stat().st_ino
    locks = map(str.split, Path("/proc/locks").read_text().splitlines())
    return next(
        int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{inode}")
    )


@pytest.mark.long
def test_kills_lose_and_repeat_nothing(service: RunningService, client: openai.OpenAI) -> None:
    lines = [request_line(number, (FLORENCE, PALIGEMMA)[number % 2]) for number in range(240)]
    batch = create(client, lines)
    for part in (GATEWAY, f"{FLORENCE}-runner", GATEWAY):
        target = num_completed(client, batch) + 5
        wait_until(lambda target=target: num_completed(client, batch) > target, END_S)  # type: ignore[misc]
        pid = leader(service) if part == GATEWAY else service.parts()[part]
        os.kill(pid, signal.SIGKILL)
    assert num_completed(client, batch) < len(lines)
    answers = output(client, batch)
    assert answers.keys() == {line["custom_id"] for line in lines}
    service.wait_until_ready(END_S)
    for line in lines[:4]:
        assert answers[line["custom_id"]]["raw_text"] == online_text(service, line)
