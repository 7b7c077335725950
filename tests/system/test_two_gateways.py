"""Two gateways, as processes of one host that share both ports, and as hosts behind HAProxy, which
sends each API key to one of them; gateways are killed meanwhile.
"""

import base64
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from diptych_client import Client
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.haproxy import Front, needs_haproxy, running_front
from tests.support.name_server import NameServer, name_server
from tests.support.processes import is_alive
from tests.support.running_service import (
    RunningService,
    bearer,
    forked_service,
    free_port,
    post_form,
)
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.replicas import MODEL, kill_all, replicas
from tests.system.service_metrics import metric

CAPTION: dict[str, Any] = {"task": "captioning", "model": MODEL, "max_new_tokens": 4}
NUM_REQUESTS = 24  # all in one of two processes by chance: 1 in 8 million
NUM_CLIENTS = 4


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    with forked_service(
        exported.home, folder / "service.log", DIPTYCH_MODELS=MODEL, DIPTYCH_GATEWAY_WORKERS="2"
    ) as running:
        wait_until(lambda: num_listening(running) == 2)
        yield running


def connections(service: RunningService, status: str) -> dict[int, list[int]]:
    """Return the local ports of the connections of each gateway, by its process."""
    ports = {}
    for child in psutil.Process(service.process.pid).children():
        if " ".join(child.cmdline()).strip().endswith("--service-name diptych"):
            tcp = child.net_connections("tcp")
            ports[child.pid] = [link.laddr.port for link in tcp if link.status == status]
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
    with load(service.url, 10, models=[MODEL]) as clients:
        clients.wait_for_more(20)
        killed = next(iter(connections(service, psutil.CONN_LISTEN)))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_alive(killed))
        assert service.predict(**CAPTION).is_success
        wait_until(lambda: num_listening(service) == 2)
        clients.wait_for_more(20)
    assert clients.kinds().keys() <= {"right", "broken"}, clients.failures()
    assert len(clients.failures()) <= 10


HOSTS = ("127.0.0.2", "127.0.0.3")
NEW_HOSTS = ("127.0.0.4", "127.0.0.5")
PRE_STOP_S = 7  # of the gateway in deploy/kubernetes
NAME = "gateways.example.org"
PER_MINUTE = 10
MAX_CONCURRENT = 2
IMAGE_KEYS = [f"image-key-{number}" for number in range(16)]  # all at one gateway: 1 in 32,768
LIMITS = {"minute": f"requests_per_minute={PER_MINUTE}", "few": f"max_concurrent={MAX_CONCURRENT}"}
GRPC_STATUSES = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}
PNG = scene_png(1)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Gateways on two addresses, as on two hosts, behind one HAProxy."""

    front: Front
    dns: NameServer
    gateways: Sequence[RunningService]
    start: Callable[[str], RunningService]  # another gateway, on an address

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.port}"

    def rest_status(self, authorization: str, path: str = "/v1/models") -> int:
        headers = {"Authorization": authorization}
        return httpx.get(self.url + path, headers=headers, timeout=60).status_code

    def grpc_status(self, authorization: str, image: bytes | None = None) -> int:
        """Return the status of a list of models, or of a prediction, in REST's numbers."""
        options: Any = {"metadata": [("authorization", authorization)], "timeout": 60}
        with grpc.insecure_channel(self.front.grpc_address) as channel:
            vision: Any = VisionStub(channel)
            try:
                if image is None:
                    vision.ListModels(pb.ListModelsRequest(), **options)
                else:
                    vision.Predict(pb.PredictRequest(image=image, **CAPTION), **options)
            except grpc.RpcError as error:
                return GRPC_STATUSES[error.code()]
        return 200

    def store_all(self) -> dict[str, str]:
        """Store an image for each key; return the ids."""
        images = {}
        with httpx.Client(base_url=self.url, timeout=60) as http:
            for key in IMAGE_KEYS:
                answer = post_form(http, "/v1/images", PNG, {}, bearer(key))
                images[key] = answer.raise_for_status().json()["id"]
        return images

    def holders(self, images: Mapping[str, str]) -> dict[str, int]:
        """Return for each key the number of the gateway that has its image."""
        holders = {}
        for key, image in images.items():
            for number, gateway in enumerate(self.gateways):
                url = f"{gateway.url}/v1/images/{image}"
                if httpx.get(url, headers=bearer(key), timeout=60).is_success:
                    assert key not in holders
                    holders[key] = number
        return holders

    def is_balanced(self) -> bool:
        """Return True if both gateways have keys, and gRPC sends each key to its gateway."""
        images = self.store_all()
        if set(self.holders(images).values()) != {0, 1}:
            return False
        statuses = [self.grpc_status(f"Bearer {key}", images[key].encode()) for key in images]
        return set(statuses) == {200}


@contextmanager
def running_hosts(store: ModelStore, folder: Path, **settings: str) -> Iterator[Hosts]:
    port = str(free_port())
    grpc_port = str(free_port())
    front = {"GATEWAYS": NAME, "GATEWAY_PORT": port, "GATEWAY_GRPC_PORT": grpc_port}
    ports = {"DIPTYCH_PORT": port, "DIPTYCH_GRPC_PORT": grpc_port}

    def start(host: str) -> RunningService:
        place = {"DIPTYCH_HOST": host, "DIPTYCH_IMAGES_FOLDER": str(folder / host)}
        url = f"http://127.0.0.1:{runners.ports[0]}"
        return runners.gateway(url, **settings, **ports, **place)

    with ExitStack() as stack:
        runners = stack.enter_context(replicas(store, folder, 1))
        gateways = [start(host) for host in HOSTS]
        dns = stack.enter_context(name_server(NAME, HOSTS))
        proxy = stack.enter_context(running_front(front, folder, dns.port))
        hosts = Hosts(proxy, dns, gateways, start)
        wait_until(lambda: hosts.rest_status("Bearer none") in (200, 401))
        yield hosts


@needs_haproxy
def test_each_key_has_its_gateway(exported: ModelStore, tmp_path: Path) -> None:
    """Until one is killed: its requests go on at the other, with the images sent again."""
    keys = write_keys(tmp_path / "keys", dict.fromkeys(IMAGE_KEYS, "") | LIMITS)
    with running_hosts(exported, tmp_path, DIPTYCH_API_KEYS_FILE=keys) as hosts:
        wait_until(hosts.is_balanced)
        assert_limits_are_exact(hosts)
        assert_images_are_found(hosts)


def assert_limits_are_exact(hosts: Hosts) -> None:
    basic = f"Basic {base64.b64encode(b'user:minute').decode()}"
    start_s = time.monotonic()
    statuses = Counter[int]()
    for _ in range(PER_MINUTE):
        statuses[hosts.rest_status("Bearer minute")] += 1
        statuses[hosts.rest_status("BEARER   minute")] += 1
        statuses[hosts.rest_status(basic, "/integrations/label-studio/health")] += 1
        statuses[hosts.grpc_status("bearer minute")] += 1
    num_refilled = (time.monotonic() - start_s) * PER_MINUTE / 60
    assert PER_MINUTE <= statuses[200] <= PER_MINUTE + num_refilled
    assert statuses.keys() == {200, 429}

    with ExitStack() as stack:
        for _ in range(MAX_CONCURRENT):
            stack.enter_context(unfinished_request(hosts.front.port, "few"))
        wait_until(lambda: hosts.grpc_status("Bearer few", PNG) == 429)
        assert post_status(hosts, "few") == 429
    wait_until(lambda: post_status(hosts, "few") == 200)


def assert_images_are_found(hosts: Hosts) -> None:
    images = hosts.store_all()
    holders = hosts.holders(images)
    assert holders.keys() == images.keys()
    for key, image in images.items():
        assert hosts.rest_status(f"Bearer {key}", f"/v1/images/{image}") == 200
        assert hosts.grpc_status(f"Bearer {key}", image.encode()) == 200

    key = next(key for key, holder in holders.items() if holder == 0)
    with Client(hosts.url, api_key=key) as client, client.image(PNG) as stored:
        text = client.predict(stored, "captioning").raw_text
        kill_all(hosts.gateways[0].process)
        assert client.predict(stored, "captioning").raw_text == text
    for key, image in images.items():
        assert hosts.grpc_status(f"Bearer {key}", PNG) == 200
        status = hosts.rest_status(f"Bearer {key}", f"/v1/images/{image}")
        assert status == (404 if holders[key] == 0 else 200)


def post_status(hosts: Hosts, key: str) -> int:
    with httpx.Client(base_url=hosts.url, timeout=60) as http:
        return post_form(http, "/v1/predict", PNG, CAPTION, bearer(key)).status_code


def unfinished_request(port: int, key: str) -> socket.socket:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + b"--x\r\n")
    return connection


@pytest.mark.long
@needs_haproxy
def test_update_of_gateways_loses_nothing(exported: ModelStore, tmp_path: Path) -> None:
    """A new one is ready before DNS drops an old one, which ends after its hook."""
    with (
        running_hosts(exported, tmp_path) as hosts,
        load(hosts.url, 2 * NUM_CLIENTS, [MODEL]) as clients,
    ):
        for number, gateway in enumerate(hosts.gateways):
            clients.wait_for_more(20)
            hosts.start(NEW_HOSTS[number])
            hosts.dns.addresses = (*HOSTS[number + 1 :], *NEW_HOSTS[: number + 1])
            time.sleep(PRE_STOP_S)
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(80) == 0
        clients.wait_for_more(20)
    assert set(clients.kinds()) == {"right"}, clients.failures()
