"""Attacks on a running service from one address: a polite client is served meanwhile, and memory
comes back.
"""

import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from tests.support.api_keys import hash_of
from tests.support.attack_images import animated_webp, repeated_scans
from tests.support.attacked_service import POLITE, Attacked, polite_clients
from tests.support.export_cli import ModelStore
from tests.support.image_files import png
from tests.support.running_service import Access, forked_service
from tests.support.scene_images import scene_png
from tests.support.unfinished_calls import unfinished_calls
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"
ATTACKER = "key-of-an-attacker"
LIMITED = "key-with-two-places"
MOST_GROWTH_BYTES = 300_000_000
LARGE_BYTES = 18_000_000


@pytest.fixture(scope="module")
def attacked(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacks")
    keys = folder / "keys"
    lines = [f"{hash_of(POLITE)} name=polite", f"{hash_of(ATTACKER)} name=attacker"]
    keys.write_text("\n".join([*lines, f"{hash_of(LIMITED)} max_concurrent=2"]))
    settings = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_API_KEYS_FILE": str(keys),
        "DIPTYCH_REQUEST_TIMEOUT_S": "60",
    }
    with forked_service(
        exported.home, folder / "service.log", Access(key=POLITE), **settings
    ) as service:
        fresh = Attacked(service, 0)
        for number in range(3):
            assert fresh.post(POLITE, scene_png(number)).status_code == 200
        yield Attacked(service, fresh.resident)


@pytest.mark.parametrize(
    "method", ["/diptych.v1.Vision/Predict", "/inference.GRPCInferenceService/ModelInfer"]
)
def test_unfinished_grpc_messages_without_a_key_take_no_memory(
    attacked: Attacked, method: str
) -> None:
    before = attacked.resident
    with ExitStack() as stack, polite_clients(attacked):
        attacks = [
            stack.enter_context(unfinished_calls(attacked.service.grpc_address, method, 10))
            for _ in range(10)
        ]
        sent = sum(attack.send(LARGE_BYTES) for attack in attacks)
        assert attacked.resident - before < MOST_GROWTH_BYTES
    assert sent < 100 * LARGE_BYTES / 4


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_unfinished_grpc_messages_of_open_methods_take_little_memory(
    attacked: Attacked, method: str
) -> None:
    before = attacked.resident
    with ExitStack() as stack:
        for _ in range(5):
            attack = unfinished_calls(attacked.service.grpc_address, method, 10)
            stack.enter_context(attack).send(LARGE_BYTES)
        assert attacked.resident - before < MOST_GROWTH_BYTES


def test_malformed_messages_are_invalid_and_only_behind_the_key(attacked: Attacked) -> None:
    def code(metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 100, timeout=20, metadata=metadata)
        return caught.value.code()

    log_size = attacked.service.log.stat().st_size
    with grpc.insecure_channel(attacked.service.grpc_address) as channel:
        call: Any = channel.unary_unary("/diptych.v1.Vision/Predict")
        assert code(()) == grpc.StatusCode.UNAUTHENTICATED
        assert code((("authorization", f"Bearer {ATTACKER}"),)) == grpc.StatusCode.INVALID_ARGUMENT
        twice = (("authorization", f"Bearer {ATTACKER}"),) * 2
        assert code(twice) == grpc.StatusCode.UNAUTHENTICATED
    logged = attacked.service.log.read_text()[log_size:]
    assert "Traceback" not in logged
    assert len(logged.splitlines()) <= 3
    headers = [("Authorization", f"Bearer {ATTACKER}")] * 2
    assert httpx.get(attacked.url("/v1/models"), headers=headers).status_code == 401


def test_silent_and_half_headed_connections_are_closed(attacked: Attacked) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connections: list[socket.socket] = []
    try:
        with polite_clients(attacked):
            for number in range(3000):
                connections.append(attacked.connect())
                with suppress(OSError):
                    connections[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" if number % 2 else b"")
            wait_until(lambda: num_open(attacked) < 50)
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def num_open(attacked: Attacked) -> int:
    return len(list(Path(f"/proc/{attacked.service.parts()['diptych']}/fd").iterdir()))


BOMBS = {
    "scans": partial(repeated_scans, (4000, 4000), 1500),
    "animation": partial(animated_webp, (2**24, 2)),
    "long side": partial(png, 50_000_000, 1, 8, 2, b"\0" * 100),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
def test_image_bombs_are_refused(attacked: Attacked, make: Callable[[], bytes]) -> None:
    bomb = make()
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: attacked.post(ATTACKER, bomb), range(6)))
    assert {answer.status_code for answer in answers} == {413}


@cache
def heavy() -> bytes:
    return repeated_scans((7000, 7000), 6)


@cache
def least_heavy() -> bytes:
    """Return an image that is decoded in 0.2 s, of a low priority."""
    return repeated_scans((5000, 5000), 1)


def test_decoding_ends_with_the_deadline_of_its_request(attacked: Attacked) -> None:
    answer = attacked.post(ATTACKER, heavy() + b"late", **{"X-Deadline-Ms": "300"})
    assert answer.status_code == 504
    wait_until(lambda: not attacked.decoders())


def test_a_killed_decoder_fails_its_request_alone(attacked: Attacked) -> None:
    with polite_clients(attacked), ThreadPoolExecutor(1) as threads:
        answer = threads.submit(attacked.post, ATTACKER, heavy() + b"killed")
        decoders: list[psutil.Process] = []
        while not decoders:
            assert not answer.done()
            decoders = attacked.decoders()
        decoders[0].kill()
        assert answer.result().status_code == 503
        assert attacked.post(ATTACKER, least_heavy()).status_code == 200


def test_bodies_that_never_end_hold_the_places_of_their_key_until_their_deadline(
    attacked: Attacked,
) -> None:
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {LIMITED}\r\nX-Deadline-Ms:"
        " 3000\r\n"
    )
    head += (
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {LARGE_BYTES}\r\n\r\n"
    )
    with ExitStack() as stack:
        connections = [stack.enter_context(attacked.connect()) for _ in range(60)]
        start_s = time.monotonic()
        for connection in connections:
            connection.sendall(head.encode() + b"--x\r\n")
        statuses = [connection.recv(65536).split()[1] for connection in connections]
        took_s = time.monotonic() - start_s
    assert (statuses.count(b"429"), statuses.count(b"504")) == (58, 2)
    assert took_s < 50  # the limit of the service is 60


@pytest.mark.long
def test_memory_comes_back_within_a_minute(attacked: Attacked) -> None:
    """The last of this file, after all the others and some large requests."""
    large = scene_png(5, (3000, 2000)) + bytes(LARGE_BYTES)
    with ThreadPoolExecutor(20) as threads:
        list(
            threads.map(lambda number: attacked.post(ATTACKER, large + bytes([number])), range(40))
        )
    peak = attacked.resident
    deadline_s = time.monotonic() + 60
    while attacked.resident > 1.3 * attacked.resident_before and time.monotonic() < deadline_s:
        time.sleep(0.5)
    megabytes = [
        round(value / 1e6) for value in (attacked.resident_before, peak, attacked.resident)
    ]
    assert attacked.resident <= 1.3 * attacked.resident_before, megabytes
