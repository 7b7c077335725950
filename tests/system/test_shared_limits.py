"""Two gateways with one key file and one store: limits of a key hold over both, and survive a
gateway.
"""

import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, bearer
from tests.support.valkey import needs_valkey, running_valkey
from tests.support.waiting import wait_until
from tests.system.replicas import kill_all, replicas

REQUESTS = "key-a"
PLACES = "key-b"
PER_MINUTE = 10
MAX_CONCURRENT = 2
KEYS = {REQUESTS: f"requests_per_minute={PER_MINUTE}", PLACES: f"max_concurrent={MAX_CONCURRENT}"}


@needs_valkey
def test_limits_hold_over_both_gateways(exported: ModelStore, tmp_path: Path) -> None:
    """The concurrent requests of a killed gateway count until their deadline."""
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(tmp_path))
        runners = stack.enter_context(replicas(exported, tmp_path, 1))
        settings = {
            "DIPTYCH_API_KEYS_FILE": write_keys(tmp_path / "keys", KEYS),
            "DIPTYCH_SHARED_LIMITS_URL": valkey.url,
            "DIPTYCH_REQUEST_TIMEOUT_S": "5",
        }
        url = f"http://127.0.0.1:{runners.ports[0]}"
        killed, other = [runners.gateway(url, **settings) for _ in range(2)]
        assert_share_a_minute(killed, other)
        for _ in range(MAX_CONCURRENT):
            stack.enter_context(unfinished_request(killed))

        def num_leases() -> int:
            return sum(map(valkey.client.zcard, valkey.client.keys("diptych:*:in_flight")))

        wait_until(lambda: num_leases() == MAX_CONCURRENT)
        assert predict(killed) == predict(other) == 429
        kill_all(killed.process)
        assert predict(other) == 429
        wait_until(lambda: predict(other) == 200, 60)


def assert_share_a_minute(*gateways: RunningService) -> None:
    statuses = Counter[int]()
    start_s = time.monotonic()
    for number in range(3 * PER_MINUTE):
        url = f"{gateways[number % 2].url}/v1/models"
        statuses[httpx.get(url, headers=bearer(REQUESTS), timeout=30).status_code] += 1
    num_refilled = (time.monotonic() - start_s) * PER_MINUTE / 60
    assert PER_MINUTE <= statuses[200] <= PER_MINUTE + num_refilled
    assert statuses.keys() == {200, 429}


def predict(gateway: RunningService) -> int:
    return gateway.predict(None, bearer(PLACES), task="captioning", max_new_tokens=1).status_code


def unfinished_request(gateway: RunningService) -> socket.socket:
    url = httpx.URL(gateway.url)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {PLACES}\r\n"
    head += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n"
    connection = socket.create_connection((url.host, url.port or 80))
    connection.sendall(head.encode() + b"--x\r\n")
    return connection
