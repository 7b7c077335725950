"""Replies over REST: answers, refusals, and broken connections."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.load.senders.replies import CONNECTION_FAILED, Reply
from loadtest.load.senders.rest import RestSender
from tests.support.load_samples import question
from tests.support.running_service import free_port
from tests.support.scripted_services import Refusal, scripted


@contextmanager
def sender_to(url: str) -> Iterator[RestSender]:
    sender = RestSender(url, 4, "secret")
    yield sender
    sender.close()


def test_an_answer_a_refusal_and_a_broken_connection_are_distinguished() -> None:
    with (
        scripted("rest", [Refusal("overloaded", 1), None]) as (url, script),
        sender_to(url) as sender,
    ):
        assert sender.predict(question()) == Reply("overloaded")
        assert sender.predict(question()) == Reply(CONNECTION_FAILED)
        (answer,) = sender.predict(question()).answers
    assert answer.result_keys == ("text",)
    assert {received.key for received in script.received} == {"Bearer secret"}
    assert {received.timeout_s for received in script.received} == {5.0}


def test_a_missing_service_is_a_failed_connection() -> None:
    with sender_to(f"http://127.0.0.1:{free_port()}") as sender:
        assert sender.stream(question()) == Reply(CONNECTION_FAILED)
        with pytest.raises(OSError, match="refused"):
            sender.get("/v1/tasks")
