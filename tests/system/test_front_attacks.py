"""Attacks on the gRPC port of the real HAProxy before the real gateway: a polite client of gRPC is
served meanwhile.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import hash_of
from tests.support.connections import is_closed
from tests.support.export_cli import ModelStore
from tests.support.haproxy import Front, needs_haproxy, running_front
from tests.support.running_service import Access, RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.unfinished_calls import unfinished_calls
from tests.support.waiting import wait_until

pytestmark = needs_haproxy

MODEL = "florence-2-mini"
POLITE = "key-of-a-polite-client"
ATTACKERS_ADDRESS = "127.0.0.2"
MOST_OF_ADDRESS = 200
LARGE_BYTES = 18_000_000
MOST_GROWTH_BYTES = 300_000_000  # gateway and HAProxy together
# and SETTINGS without values
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
PREDICT = "/diptych.v1.Vision/Predict"
HEALTH = "/grpc.health.v1.Health/Check"
POLITE_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Stand:
    service: RunningService
    front: Front

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.front.grpc_port}"

    @property
    def resident(self) -> int:
        """Memory of the gateway and of HAProxy, bytes."""
        pids = (self.service.parts()["diptych"], self.front.pid)
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)

    def connect(self) -> socket.socket:
        source = (ATTACKERS_ADDRESS, 0)
        return socket.create_connection(
            ("127.0.0.1", self.front.grpc_port), timeout=30, source_address=source
        )


@pytest.fixture(scope="module")
def stand(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("front_attacks")
    keys = folder / "keys"
    keys.write_text(f"{hash_of(POLITE)} name=polite")
    settings = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_API_KEYS_FILE": str(keys),
        "DIPTYCH_REQUEST_TIMEOUT_S": "20",
    }
    with forked_service(
        exported.home, folder / "service.log", Access(key=POLITE), **settings
    ) as service:
        ports = {
            "GATEWAY_PORT": str(httpx.URL(service.url).port),
            "GATEWAY_GRPC_PORT": service.grpc_address.rpartition(":")[2],
        }
        with running_front({"GATEWAY": "127.0.0.1", **ports}, folder) as front:
            yield Stand(service, front)


@contextmanager
def polite_client(stand: Stand) -> Iterator[list[float]]:
    """Send calls one after the other; yield the list of their seconds.

    Each must be answered in time.
    """
    took: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(stand.address) as channel:
            stub: Any = VisionStub(channel)
            while not ended.is_set():
                message = pb.PredictRequest(
                    image=scene_png(len(took) % 7), task="captioning", max_new_tokens=4
                )
                start_s = time.monotonic()
                metadata = [("authorization", f"Bearer {POLITE}")]
                assert stub.Predict(message, metadata=metadata, timeout=POLITE_TIMEOUT_S).raw_text
                took.append(time.monotonic() - start_s)
                ended.wait(0.05)

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            wait_until(lambda: took or asking.done())
            yield took
        finally:
            ended.set()
            asking.result()
    print({"calls": len(took), "slowest, s": max(took)})


def test_silent_connections_are_bounded_and_closed_and_a_polite_client_is_served(
    stand: Stand,
) -> None:
    with ExitStack() as stack, polite_client(stand):
        connections = []
        for number in range(MOST_OF_ADDRESS + 50):
            with suppress(ConnectionError):  # refused by now
                connections.append(stack.enter_context(stand.connect()))
                connections[-1].sendall(PREFACE if number % 2 else b"")
        start_s = time.monotonic()
        wait_until(
            lambda: len(connections) - sum(map(is_closed, connections)) <= MOST_OF_ADDRESS,
            timeout_s=8,  # silent ones are closed after 10
        )
        wait_until(lambda: all(map(has_ended, connections)))
        print({"closed after, s": time.monotonic() - start_s})
        assert time.monotonic() - start_s < 60


def has_ended(connection: socket.socket) -> bool:
    """Read what the server has sent; return True if it has closed the connection."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def test_calls_of_an_address_beyond_its_bound_are_refused_at_once(stand: Stand) -> None:
    gateway = stand.service.parts()["diptych"]
    with ExitStack() as stack, grpc.insecure_channel(stand.address) as channel:
        stub: Any = VisionStub(channel)
        stack.callback(os.kill, gateway, signal.SIGCONT)
        os.kill(gateway, signal.SIGSTOP)  # no call ends
        for _ in range(2):
            stack.enter_context(unfinished_calls(stand.address, PREDICT, MOST_OF_ADDRESS // 2))

        def is_refused() -> bool:
            call = stub.Predict.future(pb.PredictRequest(), timeout=1)
            return call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        wait_until(is_refused)
    with polite_client(stand) as took:
        assert took


@pytest.mark.parametrize("method", [PREDICT, HEALTH])
def test_many_streams_leave_a_polite_client_its_turn(stand: Stand, method: str) -> None:
    before = stand.resident
    with ExitStack() as stack, polite_client(stand) as took:
        for _ in range(20):
            stack.enter_context(unfinished_calls(stand.address, method, 300, ATTACKERS_ADDRESS))
        num_before = len(took)
        wait_until(lambda: len(took) > num_before + 10)
        assert stand.resident - before < MOST_GROWTH_BYTES


def test_calls_that_are_begun_and_cancelled_leave_a_polite_client_its_turn(stand: Stand) -> None:
    with ExitStack() as stack, polite_client(stand) as took:
        attacks = [
            stack.enter_context(unfinished_calls(stand.address, PREDICT, 0, ATTACKERS_ADDRESS))
            for _ in range(4)
        ]
        start_s = time.monotonic()
        num_before = len(took)
        with ThreadPoolExecutor(len(attacks)) as threads:
            num_sent = sum(threads.map(lambda attack: attack.reset(5_000), attacks))
        print({"calls begun and cancelled": num_sent, "s": time.monotonic() - start_s})
        wait_until(lambda: len(took) > num_before + 10)


@pytest.mark.parametrize("method", [PREDICT, HEALTH])
def test_unfinished_messages_without_a_key_take_no_memory(stand: Stand, method: str) -> None:
    before = stand.resident
    with ExitStack() as stack, polite_client(stand) as took:
        attacks = [
            stack.enter_context(unfinished_calls(stand.address, method, 10, ATTACKERS_ADDRESS))
            for _ in range(10)
        ]
        with ThreadPoolExecutor(len(attacks)) as threads:
            sent = sum(threads.map(lambda attack: attack.send(LARGE_BYTES), attacks))
        num_before = len(took)
        wait_until(lambda: len(took) > num_before + 10)
        growth = stand.resident - before
    print({"sent, MB": sent / 1e6, "growth, MB": growth / 1e6})
    assert growth < MOST_GROWTH_BYTES
