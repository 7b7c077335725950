"""The real HAProxy with deploy/haproxy/front.cfg, between hostile clients and a small server."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.connections import answer_to, is_closed
from tests.support.export_cli import ROOT
from tests.support.haproxy import needs_haproxy, running_front
from tests.support.served_app import serving_app
from tests.support.waiting import wait_until

pytestmark = needs_haproxy

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
MOST_OF_ADDRESS = 200


async def length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of HAProxy in front of a server."""
    with serving_app(Starlette(routes=[Route("/", length, methods=["GET", "POST"])])) as app:
        gateway = {
            "GATEWAY": "127.0.0.1",
            "GATEWAY_PORT": str(httpx.URL(app.url).port),
            "GATEWAY_GRPC_PORT": "9",
        }
        with running_front(gateway, tmp_path_factory.mktemp("front")) as front:
            yield front.port


def connect(port: int, address: str = "127.0.0.2") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(address, 0))


def test_silent_and_half_headed_connections_are_closed_after_ten_seconds(port: int) -> None:
    start_s = time.monotonic()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(port)) for _ in range(20)]
        for connection in connections[::2]:
            connection.sendall(HEAD)
        answers = [connection.recv(65536)[:12] for connection in connections]
    assert 9 < time.monotonic() - start_s < 60
    assert set(answers) <= {b"HTTP/1.1 408", b"HTTP/1.0 408", b""}


MOST_READ_BYTES = 16_000  # what is sent beyond may meet a closed connection, and the answer is lost


@pytest.mark.parametrize(
    "header", [b"X: " + b"a" * 70_000 + b"\r\n", b"X: 1\r\n" * 101], ids=["large", "many"]
)
def test_large_heads_are_refused(port: int, header: bytes) -> None:
    with connect(port) as connection:
        answer = answer_to(connection, HEAD + header + b"\r\n")
    assert b" 400 " in answer or (not answer and len(header) > MOST_READ_BYTES)


def test_connections_of_an_address_are_bounded_and_others_are_served(port: int) -> None:
    with ExitStack() as stack:
        attack = []
        for _ in range(MOST_OF_ADDRESS + 50):
            with suppress(ConnectionError):  # refused by now
                attack.append(stack.enter_context(connect(port)))
        assert httpx.post(f"http://127.0.0.1:{port}", content=bytes(3_000_000)).text == "3000000"
        wait_until(lambda: len(attack) - sum(map(is_closed, attack)) <= MOST_OF_ADDRESS, 5)
        assert len(attack) - sum(map(is_closed, attack)) == MOST_OF_ADDRESS


def test_compose_publishes_the_proxy_and_not_the_gateway() -> None:
    services = yaml.safe_load(Path(ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    assert "ports" not in services["diptych"]
    assert services["front"]["ports"] == ["127.0.0.1:3000:3000", "127.0.0.1:3001:3001"]
    assert (
        "./haproxy/front.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro" in services["front"]["volumes"]
    )
