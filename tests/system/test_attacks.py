"""Attacks from one address, on the gateway itself and on the gRPC port of the real HAProxy before
it: a polite client is served meanwhile.
"""

import itertools
import os
import resource
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import write_keys
from tests.support.attack_images import repeated_scans
from tests.support.export_cli import ModelStore
from tests.support.haproxy import Front, needs_haproxy, running_front
from tests.support.processes import image_decoders, is_closed
from tests.support.running_service import GATEWAY, Access, RunningService, bearer, forked_service
from tests.support.scene_images import scene_png
from tests.support.waiting import repeating, wait_until

POLITE = "key-of-a-polite-client"
ATTACKER = "key-of-an-attacker"
LIMITED = "key-with-two-places"
ATTACKERS_ADDRESS = "127.0.0.2"
MAX_OF_ADDRESS = 200
MAX_GROWTH_BYTES = 300_000_000
LARGE_BYTES = 18_000_000
PREDICT = "/diptych.v1.Vision/Predict"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
ACK = 1
END_HEADERS = 4
CANCEL = 8
FRAME_BYTES = 16_384
WINDOW_BYTES = 65_535


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def header_block(method: str) -> bytes:
    """Return headers without compression and index (RFC 7541, 6.2.2)."""
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a"}
    headers |= {"te": "trailers", "content-type": "application/grpc"}
    block = b""
    for name, value in headers.items():
        block += b"\0" + bytes([len(name)]) + name.encode()
        block += bytes([len(value)]) + value.encode()
    return block


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")


class UnfinishedCalls:
    """A connection with several calls, each with the start of one large message: frames of HTTP/2
    (RFC 9113).
    """

    def __init__(self, connection: socket.socket, method: str, num_calls: int) -> None:
        self._connection = connection
        self._connection.settimeout(0.2)
        self._received = b""
        self._calls = [1 + 2 * number for number in range(num_calls)]
        # key: stream; 0 is the connection
        self._window = Counter(dict.fromkeys((0, *self._calls), WINDOW_BYTES))
        self._headers = header_block(method)
        self._connection.sendall(PREFACE)
        for call in self._calls:
            self._connection.sendall(frame(HEADERS, END_HEADERS, call, self._headers))

    def reset(self, num_calls: int) -> None:
        """Begin and cancel calls, as fast as the server reads (CVE-2023-44487)."""
        first = max(self._calls, default=-1) + 2
        # the server closes the connection, or receives no more
        with suppress(OSError):
            for call in range(first, first + 2 * num_calls, 2):
                frames = frame(HEADERS, END_HEADERS, call, self._headers)
                self._connection.sendall(frames + frame(RST_STREAM, 0, call, CANCEL.to_bytes(4)))

    def send(self, num_bytes: int) -> int:
        """Send the start of a longer message in each call, as far as allowed; return the bytes."""
        remaining = Counter(dict.fromkeys(self._calls, num_bytes))
        prefix = b"\0" + struct.pack(">I", num_bytes + 1_000_000)
        # the server has closed the connection or receives no more
        with suppress(OSError):
            for call in self._calls:
                self._send_data(call, prefix)
            while remaining.total() and self._receive():
                for call in self._calls:
                    while size := min(
                        remaining[call], self._window[0], self._window[call], FRAME_BYTES
                    ):
                        self._send_data(call, bytes(size))
                        remaining[call] -= size
        return num_bytes * len(self._calls) - remaining.total()

    def _send_data(self, call: int, data: bytes) -> None:
        self._connection.sendall(frame(DATA, 0, call, data))
        self._window[0] -= len(data)
        self._window[call] -= len(data)

    def _receive(self) -> bool:
        """Read frames; return False if the server sends none for a while."""
        try:
            self._received += self._connection.recv(1 << 20)
        except TimeoutError:
            return False
        for kind, flags, stream, content in self._frames():
            if kind == WINDOW_UPDATE:
                self._window[stream] += int.from_bytes(content)
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self._connection.sendall(frame(kind, ACK, 0, content if kind == PING else b""))
        return True

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._received) >= 9:
            end = 9 + int.from_bytes(self._received[:3])
            if len(self._received) < end:
                return
            head, content = self._received[:9], self._received[9:end]
            self._received = self._received[end:]
            yield head[3], head[4], int.from_bytes(head[5:]), content


@contextmanager
def unfinished_calls(
    address: str, method: str, num_calls: int, source: str = "127.0.0.1"
) -> Iterator[UnfinishedCalls]:
    """Connect to a gRPC server, from an address of this host, and begin calls."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), source_address=(source, 0)) as connection:
        yield UnfinishedCalls(connection, method, num_calls)


@pytest.fixture(scope="module")
def attacked(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    keys = {POLITE: "name=polite", ATTACKER: "name=attacker", LIMITED: "max_concurrent=2"}
    settings = {
        "DIPTYCH_MODELS": "florence-2-mini",
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", keys),
        "DIPTYCH_REQUEST_TIMEOUT_S": "60",
    }
    access = Access(key=POLITE)
    with forked_service(exported.home, folder / "service.log", access, **settings) as service:
        for number in range(3):
            assert service.predict(scene_png(number), task="captioning").is_success
        yield service


def connect(service: RunningService) -> socket.socket:
    url = httpx.URL(service.url)
    source = (ATTACKERS_ADDRESS, 0)
    return socket.create_connection((url.host, url.port or 80), source_address=source)


def post(service: RunningService, key: str, image: bytes) -> httpx.Response:
    return service.predict(image, bearer(key), task="captioning", max_new_tokens=4)


@contextmanager
def polite(ask: Callable[[bytes], object]) -> Iterator[Callable[[int], None]]:
    """Send images one after the other; each must be answered. Yield a function that waits for
    further answers.
    """
    images = itertools.cycle([scene_png(seed) for seed in range(7)])
    with repeating(lambda: ask(next(images))) as wait_for_more:
        wait_for_more(1)
        yield wait_for_more


def polite_rest(attacked: RunningService) -> AbstractContextManager[object]:
    return polite(lambda image: post(attacked, POLITE, image).raise_for_status())


@pytest.mark.parametrize("method", [PREDICT, HEALTH, REFLECTION])
def test_unfinished_grpc_messages_take_no_memory(attacked: RunningService, method: str) -> None:
    before = attacked.resident_bytes()
    with ExitStack() as stack, polite_rest(attacked):
        num_sent = 0
        for _ in range(10):
            attack = unfinished_calls(attacked.grpc_address, method, 10)
            num_sent += stack.enter_context(attack).send(LARGE_BYTES)
        assert attacked.resident_bytes() - before < MAX_GROWTH_BYTES
    assert num_sent < 100 * LARGE_BYTES / 4


def test_two_keys_are_refused(attacked: RunningService) -> None:
    headers = [("Authorization", f"Bearer {ATTACKER}")] * 2
    assert httpx.get(f"{attacked.url}/v1/models", headers=headers).status_code == 401
    metadata = [("authorization", f"Bearer {ATTACKER}")] * 2
    with attacked.vision() as vision, pytest.raises(grpc.RpcError) as caught:
        vision.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def many_files() -> Iterator[ExitStack]:
    """Let this process open as many files as it may; those on the stack are closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        yield stack
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_grpc_connections_are_bounded(attacked: RunningService, many_files: ExitStack) -> None:
    host, port = attacked.grpc_address.split(":")
    connections: list[socket.socket] = []
    for _ in range(1_100):
        connection = socket.create_connection((host, int(port)))
        connections.append(many_files.enter_context(connection))
    max_concurrent_streams = b"\0\3" + (256).to_bytes(4)  # RFC 9113, 6.5.2
    assert max_concurrent_streams in connections[0].recv(100)
    wait_until(lambda: 100 <= sum(map(is_closed, connections)) < 200)


def test_killed_decoder_fails_its_request_alone(attacked: RunningService) -> None:
    with polite_rest(attacked), ThreadPoolExecutor(1) as threads:
        answer = threads.submit(post, attacked, ATTACKER, repeated_scans((7000, 7000), 6))
        decoders: list[psutil.Process] = []
        while not decoders:
            assert not answer.done()
            decoders = image_decoders(attacked.parts()[GATEWAY])
        decoders[0].kill()
        assert answer.result().status_code == 503
        # 0.2 s of a low priority
        assert post(attacked, ATTACKER, repeated_scans((5000, 5000), 1)).status_code == 200


def test_endless_bodies_end_at_their_deadline(attacked: RunningService) -> None:
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {LIMITED}\r\n"
        "X-Deadline-Ms: 3000\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {LARGE_BYTES}\r\n\r\n--x\r\n"
    )
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(attacked)) for _ in range(60)]
        start_s = time.monotonic()
        for connection in connections:
            connection.sendall(head.encode())
        statuses = [connection.recv(65536).split()[1] for connection in connections]
        duration_s = time.monotonic() - start_s
    assert (statuses.count(b"429"), statuses.count(b"504")) == (58, 2)
    assert duration_s < 50  # the limit of the service is 60


@pytest.fixture(scope="module")
def front(attacked: RunningService, folder: Path) -> Iterator[Front]:
    gateway = {
        "GATEWAY": "127.0.0.1",
        "GATEWAY_PORT": str(httpx.URL(attacked.url).port),
        "GATEWAY_GRPC_PORT": attacked.grpc_address.rpartition(":")[2],
    }
    with running_front(gateway, folder) as running:
        yield running


def resident_bytes(attacked: RunningService, front: Front) -> int:
    proxy: int = psutil.Process(front.pid).memory_info().rss
    return attacked.resident_bytes() + proxy


@contextmanager
def polite_grpc(address: str) -> Iterator[Callable[[int], None]]:
    metadata = [("authorization", f"Bearer {POLITE}")]
    with grpc.insecure_channel(address) as channel:

        def ask(image: bytes) -> None:
            request = pb.PredictRequest(image=image, task="captioning", max_new_tokens=4)
            assert VisionStub(channel).Predict(request, metadata=metadata, timeout=20).raw_text

        with polite(ask) as wait_for_more:
            yield wait_for_more


@needs_haproxy
def test_calls_of_an_address_are_bounded(attacked: RunningService, front: Front) -> None:
    gateway = attacked.parts()[GATEWAY]
    with ExitStack() as stack, grpc.insecure_channel(front.grpc_address) as channel:
        vision: Any = VisionStub(channel)
        stack.callback(os.kill, gateway, signal.SIGCONT)
        os.kill(gateway, signal.SIGSTOP)  # no call ends
        for _ in range(2):
            calls = unfinished_calls(front.grpc_address, PREDICT, MAX_OF_ADDRESS // 2)
            stack.enter_context(calls)

        def is_refused() -> bool:
            call = vision.Predict.future(pb.PredictRequest(), timeout=1)
            return call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        wait_until(is_refused)
    with polite_grpc(front.grpc_address):
        pass


@needs_haproxy
@pytest.mark.parametrize(
    ("method", "num_connections", "num_calls", "attack"),
    [
        (PREDICT, 20, 300, methodcaller("send", 0)),
        (HEALTH, 20, 300, methodcaller("send", 0)),
        (PREDICT, 10, 10, methodcaller("send", LARGE_BYTES)),
        (HEALTH, 10, 10, methodcaller("send", LARGE_BYTES)),
        (PREDICT, 4, 0, methodcaller("reset", 5_000)),
    ],
)
def test_attacks_on_the_front_leave_a_polite_client_its_turn(
    attacked: RunningService,
    front: Front,
    method: str,
    num_connections: int,
    num_calls: int,
    attack: Callable[[UnfinishedCalls], object],
) -> None:
    before = resident_bytes(attacked, front)
    with ExitStack() as stack, polite_grpc(front.grpc_address) as wait_for_more:
        attackers = []
        for _ in range(num_connections):
            calls = unfinished_calls(front.grpc_address, method, num_calls, ATTACKERS_ADDRESS)
            attackers.append(stack.enter_context(calls))
        with ThreadPoolExecutor(len(attackers)) as threads:
            list(threads.map(attack, attackers))
        wait_for_more(10)
        assert resident_bytes(attacked, front) - before < MAX_GROWTH_BYTES
