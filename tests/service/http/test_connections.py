"""Bounds on connections before there is a request, over real sockets."""

import socket
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.http.connections import ConnectionLimits, bounded_connection
from tests.support.http_servers import ServedApp, serving_app
from tests.support.processes import answer_to, is_closed
from tests.support.waiting import wait_until

TIMEOUT_S = 0.4
PATIENT_S = 30  # the machine is shared
LIMITS = ConnectionLimits(
    max_connections=8, max_connections_per_address=5, head_timeout_s=TIMEOUT_S
)
GATEWAYS = memoryview(array("I", [0, 0]))  # their connections
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"


async def length(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def refuse(_request: Request) -> Response:
    return PlainTextResponse("no", 429)


@pytest.fixture(autouse=True)
def other_gateway() -> None:
    GATEWAYS[1] = 8


async def late_address(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("", 409 if "x-forwarded-for" in request.headers else 200)


APP = Starlette(
    routes=[
        Route("/", length, methods=["GET", "POST"]),
        Route("/refuse", refuse, methods=["POST"]),
        Route("/late", late_address, methods=["POST"]),
    ]
)


@pytest.fixture(scope="module")
def served() -> Iterator[ServedApp]:
    with serving_app(APP, bounded_connection(LIMITS, GATEWAYS, 0)) as app:
        yield app


def connect(served: ServedApp, address: str = "127.0.0.1") -> socket.socket:
    url = httpx.URL(served.url)
    return socket.create_connection(
        (url.host, url.port or 80), timeout=PATIENT_S, source_address=(address, 0)
    )


def assert_is_closed(connection: socket.socket, dripped: bytes = b"") -> None:
    """Check that the server closes, though `dripped` is sent every 50 ms."""
    end_s = time.monotonic() + PATIENT_S
    connection.settimeout(0.05)
    with suppress(ConnectionError):
        while time.monotonic() < end_s:
            with suppress(TimeoutError):
                connection.send(dripped)
                if not connection.recv(65536):
                    return
        raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    ("sent", "dripped"), [(b"", b""), (HEAD, b""), (HEAD + b"X: ", b"a"), (b"", b"\r\n")]
)
def test_slow_head_is_closed(served: ServedApp, sent: bytes, dripped: bytes) -> None:
    with connect(served) as connection:
        connection.sendall(sent)
        assert_is_closed(connection, dripped)


def test_second_head_has_the_same_time(served: ServedApp) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert_is_closed(connection, b"X")


def test_refused_body_is_not_awaited(served: ServedApp) -> None:
    with connect(served) as connection:
        connection.sendall(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
        assert_is_closed(connection, b"a")


def test_slow_clients_are_served(served: ServedApp) -> None:
    with connect(served) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        for _ in range(4):
            time.sleep(TIMEOUT_S / 2)
            connection.sendall(b"a")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(("num_of_other", "is_kept"), [(0, False), (1, True)])
def test_gateway_balances_connections(served: ServedApp, num_of_other: int, is_kept: bool) -> None:
    wait_until(lambda: GATEWAYS[0] == 0)
    with connect(served), connect(served) as second:
        wait_until(lambda: GATEWAYS[0] == 2)
        GATEWAYS[1] = num_of_other
        second.sendall(HEAD + b"\r\n")
        answer = second.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        assert (b"connection: close" not in answer) == is_kept


MOST_READ_BYTES = 16_000  # what is sent beyond may meet a closed connection, and the answer is lost


POST_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
LARGE_HEADS = {
    "large header": HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": HEAD + b"X: 1\r\n" * 100 + b"\r\n",
    "many large headers": HEAD + (b"X: " + b"a" * 1000 + b"\r\n") * 90 + b"\r\n",
    "long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "many trailers": POST_CHUNKS + b"X: 1\r\n" * 40_000 + b"\r\n",
    "large trailer": POST_CHUNKS + b"X: " + b"a" * 1_000_000,
}


@pytest.mark.parametrize("kind", LARGE_HEADS)
def test_large_head_is_refused(served: ServedApp, kind: str) -> None:
    head = LARGE_HEADS[kind]
    with connect(served) as connection:
        answer = answer_to(connection, head)
    assert answer.startswith(b"HTTP/1.1 400") or (not answer and len(head) > MOST_READ_BYTES)


def test_trailers_are_no_headers(served: ServedApp) -> None:
    """Behind a proxy that sets it, a client could choose its own address."""
    request = POST_CHUNKS.replace(b"/ HTTP", b"/late HTTP") + b"X-Forwarded-For: a\r\n\r\n"
    with connect(served) as connection:
        assert answer_to(connection, request) == b"HTTP/1.1 200 OK"


def test_head_at_the_bounds(served: ServedApp) -> None:
    headers = {f"X-{number}": "a" * 600 for number in range(94)}  # 100 with those of httpx
    assert httpx.post(served.url, content=bytes(3_000_000), headers=headers).text == "3000000"


def test_connections_are_bounded() -> None:
    limits = replace(LIMITS, head_timeout_s=3)  # enough to open and count them
    with (
        serving_app(APP, bounded_connection(limits, GATEWAYS[:1], 0)) as served,
        ExitStack() as stack,
    ):

        def attackers(address: str) -> list[socket.socket]:
            return [stack.enter_context(connect(served, address)) for _ in range(20)]

        def num_open(*connections: socket.socket) -> int:
            return sum(not is_closed(connection) for connection in connections)

        burst_is_whole = threading.Event()
        served.loop.call_soon_threadsafe(burst_is_whole.wait, PATIENT_S)  # accepted at once
        first = attackers("127.0.0.2")
        with connect(served) as other:
            other.sendall(HEAD + b"\r\n")
            burst_is_whole.set()
            assert other.recv(65536).startswith(b"HTTP/1.1 200")
        more = attackers("127.0.0.3")
        wait_until(lambda: num_open(*first, *more) <= limits.max_connections)
        assert num_open(*first) == limits.max_connections_per_address
        wait_until(lambda: num_open(*first, *more) == 0)
        assert httpx.get(served.url).text == "0"
