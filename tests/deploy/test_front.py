"""The real HAProxy with deploy/haproxy/front.cfg, between hostile clients and a small server."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.haproxy import Front, needs_haproxy, running_front
from tests.support.http_servers import serving_app
from tests.support.processes import answer_to, is_closed
from tests.support.waiting import wait_until

pytestmark = needs_haproxy

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
# of HTTP/2, with empty settings (RFC 9113, 3.4)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
MAX_OF_ADDRESS = 200


async def length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture(scope="module")
def gateway() -> Iterator[dict[str, str]]:
    """The variables of front.cfg that name a small server."""
    with serving_app(Starlette(routes=[Route("/", length, methods=["GET", "POST"])])) as app:
        yield {
            "GATEWAY": "127.0.0.1",
            "GATEWAY_PORT": str(httpx.URL(app.url).port),
            "GATEWAY_GRPC_PORT": "9",
        }


@pytest.fixture(scope="module")
def front(gateway: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with running_front(gateway, tmp_path_factory.mktemp("front")) as running:
        yield running


def connect(port: int) -> socket.socket:
    source = ("127.0.0.2", 0)
    return socket.create_connection(("127.0.0.1", port), timeout=60, source_address=source)


def test_incomplete_heads_are_closed_after_ten_seconds(front: Front) -> None:
    start_s = time.monotonic()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(front.port)) for _ in range(20)]
        for connection in connections[::2]:
            connection.sendall(HEAD)
        answers = [connection.recv(65536)[:12] for connection in connections]
    assert 9 < time.monotonic() - start_s < 60
    assert set(answers) <= {b"HTTP/1.1 408", b"HTTP/1.0 408", b""}


MAX_READ_BYTES = 16_000  # what is sent beyond may meet a closed connection, and the answer is lost


@pytest.mark.parametrize(
    "header", [b"X: " + b"a" * 70_000 + b"\r\n", b"X: 1\r\n" * 101], ids=["large", "many"]
)
def test_large_heads_are_refused(front: Front, header: bytes) -> None:
    with connect(front.port) as connection:
        answer = answer_to(connection, HEAD + header + b"\r\n")
    assert b" 400 " in answer or (not answer and len(header) > MAX_READ_BYTES)


@pytest.mark.parametrize(("is_grpc", "sent"), [(False, HEAD), (True, PREFACE)])
def test_silent_connections_are_bounded_and_closed(
    front: Front, is_grpc: bool, sent: bytes
) -> None:
    with ExitStack() as stack:
        connections = []
        for number in range(MAX_OF_ADDRESS + 50):
            with suppress(ConnectionError):  # refused by now
                connection = connect(front.grpc_port if is_grpc else front.port)
                connections.append(stack.enter_context(connection))
                connection.sendall(sent if number % 2 else b"")

        def num_open() -> int:
            return len(connections) - sum(map(is_closed, connections))

        url = f"http://127.0.0.1:{front.port}"
        assert httpx.post(url, content=bytes(3_000_000)).text == "3000000"
        wait_until(lambda: num_open() <= MAX_OF_ADDRESS, 5)
        assert num_open() == MAX_OF_ADDRESS
        wait_until(lambda: num_open() == 0, 60)


def test_ending_proxy_sends_clients_elsewhere(gateway: dict[str, str], tmp_path: Path) -> None:
    """It still accepts connections, and closes each after an answer."""
    with (
        running_front({**gateway, "FRONT_GRACE": "60s"}, tmp_path) as front,
        httpx.Client(base_url=f"http://127.0.0.1:{front.port}") as client,
    ):
        assert "connection" not in client.get("/").headers
        os.kill(front.pid, signal.SIGUSR1)
        wait_until(lambda: client.get("/").headers.get("connection") == "close")
        assert client.get("/").headers["connection"] == "close"
