"""Two gateways with one key file and one store: limits of a key hold over both, and survive a
gateway.
"""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.replicas import kill_all, replicas
from tests.support.running_service import RunningService, bearer
from tests.support.valkey import Valkey, needs_valkey, running_valkey
from tests.support.waiting import wait_until

pytestmark = needs_valkey

REQUESTS = "key-a"
PLACES = "key-b"
PER_MINUTE = 10
MAX_CONCURRENT = 2
REFILL_S = 60 / PER_MINUTE
KEYS = {
    REQUESTS: f"requests_per_minute={PER_MINUTE}",
    PLACES: f"max_concurrent={MAX_CONCURRENT}",
}
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True, slots=True)
class Stand:
    """Two gateways over one runner, and their store."""

    store: Valkey
    gateways: tuple[RunningService, RunningService]

    def num_leases(self) -> int:
        names: Any = self.store.client.keys("diptych:*:in_flight")
        return sum(map(self.store.client.zcard, names))

    def statuses(self, key: str, num_requests: int) -> Counter[int]:
        """Send requests to both gateways in turn."""
        statuses = Counter[int]()
        for number in range(num_requests):
            url = f"{self.gateways[number % 2].url}/v1/models"
            statuses[httpx.get(url, headers=bearer(key), timeout=30).status_code] += 1
        return statuses


@pytest.fixture(scope="module")
def stand(exported: ModelStore, folder: Path) -> Iterator[Stand]:
    with running_valkey(folder) as valkey, replicas(exported, folder, 1) as runners:
        settings = {
            "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", KEYS),
            "DIPTYCH_SHARED_LIMITS_URL": valkey.url,
            "DIPTYCH_REQUEST_TIMEOUT_S": "5",
        }
        url = f"http://127.0.0.1:{runners.ports[0]}"
        yield Stand(valkey, (runners.gateway(url, **settings), runners.gateway(url, **settings)))


def predict(gateway: RunningService) -> int:
    fields: Any = {"task": "captioning", "max_new_tokens": 1}
    return gateway.predict(None, bearer(PLACES), **fields).status_code


def test_gateways_share_the_requests_of_a_minute(stand: Stand) -> None:
    start_s = time.monotonic()
    statuses = stand.statuses(REQUESTS, 3 * PER_MINUTE)
    num_refilled = (time.monotonic() - start_s) / REFILL_S
    assert PER_MINUTE <= statuses[200] <= PER_MINUTE + num_refilled
    assert statuses.keys() == {200, 429}
    for gateway in stand.gateways:  # the first call may take what was refilled
        wait_until(lambda gateway=gateway: grpc_code(gateway) is EXHAUSTED)  # type: ignore[misc]


def grpc_code(gateway: RunningService) -> Any:
    with gateway.vision() as vision:
        metadata = [("authorization", f"Bearer {REQUESTS}")]
        call = vision.ListModels.future(pb.ListModelsRequest(), metadata=metadata, timeout=30)
        return call.code()  # waits


def test_concurrent_requests_are_shared(stand: Stand) -> None:
    """Those of a killed gateway count until their deadline; the last of this file."""
    killed, other = stand.gateways
    with ExitStack() as stack:
        for _ in range(MAX_CONCURRENT):
            stack.enter_context(unfinished_request(killed))
        wait_until(lambda: stand.num_leases() == MAX_CONCURRENT)
        assert predict(killed) == predict(other) == 429
        kill_all(killed.process)
        assert predict(other) == 429
        wait_until(lambda: predict(other) == 200, 60)


def unfinished_request(gateway: RunningService) -> socket.socket:
    url = httpx.URL(gateway.url)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {PLACES}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(head.encode() + b"--x\r\n")
    return connection
