"""Two gateways with one key file and one store: limits of a key hold over both, and survive the
store and a gateway.
"""

import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import hash_of
from tests.support.export_cli import ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.replicas import MODEL, Replicas, replicas
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.valkey import Valkey, needs_valkey, running_valkey
from tests.support.waiting import wait_until

pytestmark = needs_valkey

REQUESTS = "key-a"
MEGAPIXELS = "key-b"
PLACES = "key-c"
OUTAGE = "key-d"
PER_MINUTE = 10
MAX_CONCURRENT = 2
REFILL_S = 60 / PER_MINUTE
TIMEOUT_S = 5
UNANSWERED = "diptych_shared_limits_unanswered_total"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True, slots=True)
class Stand:
    """Two gateways of two processes in all, over one runner, and their store."""

    store: Valkey
    gateways: Sequence[RunningService]

    def unanswered(self) -> float:
        return sum(metric(gateway, UNANSWERED) for gateway in self.gateways)


@pytest.fixture(scope="module")
def stand(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder: Path = tmp_path_factory.mktemp("shared_limits")
    keys = folder / "keys"
    options = {
        REQUESTS: f"requests_per_minute={PER_MINUTE}",
        MEGAPIXELS: "megapixels_per_minute=1",
        PLACES: f"max_concurrent={MAX_CONCURRENT}",
        OUTAGE: f"requests_per_minute={PER_MINUTE}",
    }
    keys.write_text(
        "\n".join(f"{hash_of(key)} name={key} {limits}" for key, limits in options.items())
    )
    with running_valkey(folder) as valkey, replicas(exported, folder, 1) as runners:
        settings = {
            "DIPTYCH_API_KEYS_FILE": str(keys),
            "DIPTYCH_SHARED_LIMITS_URL": valkey.url,
            "DIPTYCH_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        }
        url = f"http://127.0.0.1:{runners.ports[0]}"
        yield Stand(valkey, [gateway(runners, url, settings) for _ in range(2)])


def gateway(runners: Replicas, url: str, settings: dict[str, str]) -> RunningService:
    return runners.gateway(url, **settings)


def models(gateway: RunningService, key: str) -> httpx.Response:
    return httpx.get(
        f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30
    )


def predict(gateway: RunningService, key: str, image: bytes) -> httpx.Response:
    form = {"task": "captioning", "model": MODEL, "max_new_tokens": "1"}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(
        f"{gateway.url}/v1/predict", data=form, files={"image": image}, headers=headers, timeout=30
    )


def grpc_code(gateway: RunningService, key: str) -> grpc.StatusCode:
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        stub: Any = VisionStub(channel)
        call = stub.ListModels.future(
            pb.ListModelsRequest(), metadata=[("authorization", f"Bearer {key}")], timeout=30
        )
        code: grpc.StatusCode = call.code()  # waits
    return code


def test_two_gateways_together_admit_the_requests_of_one_minute(stand: Stand) -> None:
    start_s = time.monotonic()
    statuses = Counter(
        models(stand.gateways[number % 2], REQUESTS).status_code for number in range(3 * PER_MINUTE)
    )
    refilled = (time.monotonic() - start_s) / REFILL_S
    assert stand.unanswered() == 0
    assert PER_MINUTE <= statuses[200] <= PER_MINUTE + refilled
    assert statuses.keys() == {200, 429}
    for gateway in stand.gateways:  # the first call may take what was refilled
        wait_until(lambda each=gateway: grpc_code(each, REQUESTS) is EXHAUSTED)  # type: ignore[misc]


def test_two_gateways_share_the_megapixels_of_a_key(stand: Stand) -> None:
    image = scene_png(0, (800, 800))
    statuses = [predict(gateway, MEGAPIXELS, image).status_code for gateway in stand.gateways]
    assert stand.unanswered() == 0
    assert statuses == [200, 429]


def test_two_gateways_share_the_concurrent_requests_of_a_key(stand: Stand) -> None:
    with ExitStack() as stack:
        for gateway in stand.gateways:
            stack.enter_context(unfinished_request(gateway, PLACES))
        wait_until(lambda: num_leases(stand) == MAX_CONCURRENT)
        statuses = [predict(gateway, PLACES, scene_png()).status_code for gateway in stand.gateways]
    assert stand.unanswered() == 0
    assert statuses == [429, 429]
    wait_until(lambda: num_leases(stand) == 0)


def num_leases(stand: Stand) -> int:
    names: Any = stand.store.client.keys("diptych:*:in_flight")
    return sum(map(stand.store.client.zcard, names))


def test_without_the_store_each_gateway_applies_the_limits_and_with_it_they_share_again(
    stand: Stand,
) -> None:
    statuses = Counter[int]()
    took_s = []
    stand.store.kill()
    for number in range(6 * PER_MINUTE):
        start_s = time.monotonic()
        statuses[models(stand.gateways[number % 2], OUTAGE).status_code] += 1
        took_s.append(time.monotonic() - start_s)
    print({"slowest without the store, ms": max(took_s) * 1000})
    assert statuses.keys() == {200, 429}
    assert 2 * PER_MINUTE <= statuses[200] <= 2 * (PER_MINUTE + 1 + sum(took_s) / REFILL_S)
    assert max(took_s) < 15
    for gateway in stand.gateways:
        assert gateway.is_ready()
        assert gateway.log.read_text().count("the store of the shared limits fails") == 1
        assert metric(gateway, UNANSWERED) >= 3 * PER_MINUTE
    stand.store.start()
    wait_until(lambda: {models(gateway, OUTAGE).status_code for gateway in stand.gateways} == {200})
    assert all("answers again" in gateway.log.read_text() for gateway in stand.gateways)
    statuses = Counter(
        models(stand.gateways[number % 2], OUTAGE).status_code for number in range(2 * PER_MINUTE)
    )
    assert statuses[200] <= PER_MINUTE


def test_requests_of_a_killed_gateway_count_until_their_deadline(stand: Stand) -> None:
    killed, other = stand.gateways
    with ExitStack() as stack:
        for _ in range(MAX_CONCURRENT):
            stack.enter_context(unfinished_request(killed, PLACES))
        wait_until(lambda: num_leases(stand) == MAX_CONCURRENT)
        start_s = time.monotonic()
        workers = descendants(killed.process.pid)
        killed.process.kill()
        killed.process.wait()
        wait_until(lambda: not any(map(is_alive, workers)))
        assert predict(other, PLACES, scene_png()).status_code == 429
        wait_until(lambda: predict(other, PLACES, scene_png()).status_code == 200)
    print({"places are free after, s": time.monotonic() - start_s})
    assert time.monotonic() - start_s < 60


def unfinished_request(gateway: RunningService, key: str) -> socket.socket:
    """Send the start of a request's body."""
    url = httpx.URL(gateway.url)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(head.encode() + b"--x\r\n")
    return connection
