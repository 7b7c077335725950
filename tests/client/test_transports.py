"""Calls as a server receives them, over both transports and from both clients: retries, deadlines,
keys.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from diptych_client import ConnectionFailed, DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from tests.support.both_clients import KINDS, call
from tests.support.running_service import free_port
from tests.support.scripted_services import ANSWER, Refusal, scripted

pytestmark = [
    pytest.mark.parametrize("kind", KINDS),
    pytest.mark.parametrize("interface", ["rest", "grpc"]),
]


GRPC_ROUNDING_S = 0.1  # the header of a gRPC timeout has few digits and is rounded up


def predict(client: Any) -> Any:
    return client.predict(b"image", "ocr")


def test_retry_after_is_respected_and_the_next_attempt_has_the_remaining_time(
    interface: str, kind: str
) -> None:
    with scripted(interface, [Refusal("overloaded", retry_after_s=1)]) as (url, script):
        assert call(kind, url, predict, timeout_s=9.5) == ANSWER
    first, second = script.received
    assert second.at_s - first.at_s >= 1
    assert 0 < first.timeout_s <= 9.5 + GRPC_ROUNDING_S
    assert 0 < second.timeout_s <= first.timeout_s - 1 + GRPC_ROUNDING_S
    assert first.request_id == second.request_id


def test_not_ready_and_a_broken_connection_are_retried(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("not_ready"), None]) as (url, script):
        assert call(kind, url, predict) == ANSWER
    assert len(script.received) == 3


def test_a_final_error_is_not_retried(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("invalid_request", retry_after_s=0)]) as (url, script):
        with pytest.raises(InvalidRequest) as caught:
            call(kind, url, predict)
        assert len(script.received) == 1
    assert caught.value.message == "no"


def test_the_last_attempt_raises_the_error_of_the_service(interface: str, kind: str) -> None:
    refusals = [Refusal("overloaded", retry_after_s=0)] * 3
    with scripted(interface, refusals) as (url, script):
        with pytest.raises(Overloaded) as caught:
            call(kind, url, predict, max_retries=2)
        assert len(script.received) == 3
    assert caught.value.retry_after_s == 0


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(interface: str, kind: str) -> None:
    start_s = time.monotonic()
    with scripted(interface, [Refusal("not_ready", retry_after_s=90)]) as (url, script):
        with pytest.raises(NotReady):
            call(kind, url, predict, timeout_s=60)
        assert len(script.received) == 1
    assert time.monotonic() - start_s < 30


def test_the_api_key_is_sent(interface: str, kind: str) -> None:
    with scripted(interface, []) as (url, script):
        call(kind, url, predict, api_key="secret")
    assert script.received[0].key == "Bearer secret"


def test_an_unreachable_service_is_an_error_after_the_last_retry(interface: str, kind: str) -> None:
    scheme = "http" if interface == "rest" else "grpc"
    with pytest.raises(ConnectionFailed) as caught:
        call(kind, f"{scheme}://127.0.0.1:{free_port()}", predict, max_retries=1)
    assert len(caught.value.request_id) == 32


@contextmanager
def silent_server() -> Iterator[int]:
    """Accept connections and never respond."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_server_that_never_responds_ends_at_the_deadline(interface: str, kind: str) -> None:
    scheme = "http" if interface == "rest" else "grpc"
    start_s = time.monotonic()
    with silent_server() as port, pytest.raises(DeadlineExceeded):
        call(kind, f"{scheme}://127.0.0.1:{port}", predict, timeout_s=0.3)
    assert 0.25 < time.monotonic() - start_s < 30
