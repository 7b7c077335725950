"""Retries as a server sees them, over both interfaces, with and without asyncio."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client import ConnectionFailed, DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from tests.support.both_clients import KINDS, call
from tests.support.running_service import free_port
from tests.support.scripted_services import ANSWER, Refusal, scripted

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("interface", ["rest", "grpc"])]


GRPC_ROUNDING_S = 0.1  # its header of a timeout has few digits, and is rounded up


def predict(client: Any) -> Any:
    return client.predict(b"image", "ocr")


def test_the_wait_is_what_the_service_asked_for_and_the_next_deadline_what_is_left(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("overloaded", retry_after_s=1)]) as (url, script):
        assert call(kind, url, predict, timeout_s=10) == ANSWER
    first, second = script.received
    assert 1 <= second.at_s - first.at_s < 3
    assert 9 < first.timeout_s <= 10 + GRPC_ROUNDING_S
    assert 7 < second.timeout_s <= 9 + GRPC_ROUNDING_S
    assert first.request_id == second.request_id


def test_a_service_that_is_not_ready_and_a_cut_connection_are_tried_again(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("not_ready"), None]) as (url, script):
        assert call(kind, url, predict) == ANSWER
    assert len(script.received) == 3


def test_what_cannot_succeed_later_is_sent_once(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("invalid_request", retry_after_s=0)]) as (url, script):
        with pytest.raises(InvalidRequest) as caught:
            call(kind, url, predict)
        assert len(script.received) == 1
    assert caught.value.message == "no"


def test_the_last_retry_raises_what_the_service_said(interface: str, kind: str) -> None:
    refusals = [Refusal("overloaded", retry_after_s=0)] * 3
    with scripted(interface, refusals) as (url, script):
        with pytest.raises(Overloaded) as caught:
            call(kind, url, predict, max_retries=2)
        assert len(script.received) == 3
    assert caught.value.retry_after_s == 0


def test_a_service_that_asks_for_more_time_than_is_left_is_not_waited_for(interface: str, kind: str) -> None:
    start_s = time.monotonic()
    with scripted(interface, [Refusal("not_ready", retry_after_s=30)]) as (url, script):
        with pytest.raises(NotReady):
            call(kind, url, predict, timeout_s=5)
        assert len(script.received) == 1
    assert time.monotonic() - start_s < 3


def test_the_key_is_sent(interface: str, kind: str) -> None:
    with scripted(interface, []) as (url, script):
        call(kind, url, predict, api_key="secret")
    assert script.received[0].key == "Bearer secret"


def test_nobody_there_is_said_when_no_retry_is_left(interface: str, kind: str) -> None:
    scheme = "http" if interface == "rest" else "grpc"
    with pytest.raises(ConnectionFailed) as caught:
        call(kind, f"{scheme}://127.0.0.1:{free_port()}", predict, max_retries=1)
    assert len(caught.value.request_id) == 32


@contextmanager
def silent_server() -> Iterator[int]:
    """Listen and never say a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_server_that_never_answers_is_left_at_the_deadline(interface: str, kind: str) -> None:
    scheme, start_s = "http" if interface == "rest" else "grpc", time.monotonic()
    with silent_server() as port, pytest.raises(DeadlineExceeded):
        call(kind, f"{scheme}://127.0.0.1:{port}", predict, timeout_s=0.3)
    assert 0.25 < time.monotonic() - start_s < 3
