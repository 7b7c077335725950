"""Replies over REST, and the check of answers; tests/system/test_load.py has all interfaces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loadtest.senders import (
    CONNECTION_FAILED,
    OK,
    WRONG_ANSWER,
    Checker,
    ModelReply,
    Reply,
    RestSender,
)
from loadtest.traffic import COMPARED, Question, SentImage
from tests.support.running_service import free_port
from tests.support.scripted_services import Refusal, scripted

MODEL = "florence-2-mini"
OTHER_MODEL = "paligemma-mini"


def question(model: str = MODEL, image_number: int | None = 1) -> Question:
    """Return a question; its image is repeated if it has a number."""
    image = SentImage(b"pixels", (64, 48), image_number)
    return Question("rest", "ocr", model, {}, image, 5.0, "text")


def answer(
    model: str = MODEL,
    task: str = "ocr",
    result_key: str = "text",
    size_wh: tuple[int, int] = (64, 48),
    raw_text: str = "YK",
) -> ModelReply:
    """Return an answer to `question()`, by default the right one."""
    return ModelReply(model, task, (result_key,), size_wh, raw_text)


@contextmanager
def sender_to(url: str) -> Iterator[RestSender]:
    sender = RestSender(url, 4, "secret")
    yield sender
    sender.close()


def test_answer_refusal_and_broken_connection_differ() -> None:
    with (
        scripted("rest", [Refusal("overloaded", 1), None]) as (url, script),
        sender_to(url) as sender,
    ):
        assert sender.predict(question()) == Reply("overloaded")
        assert sender.predict(question()) == Reply(CONNECTION_FAILED)
        (model_reply,) = sender.predict(question()).answers
    assert model_reply.result_keys == ("text",)
    assert {received.key for received in script.received} == {"Bearer secret"}
    assert {received.timeout_s for received in script.received} == {5.0}


def test_missing_service_is_a_failed_connection() -> None:
    with sender_to(f"http://127.0.0.1:{free_port()}") as sender:
        assert sender.stream(question()) == Reply(CONNECTION_FAILED)
        with pytest.raises(OSError, match="refused"):
            sender.get("/v1/tasks")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"task": "captioning"},
        {"result_key": "detections"},
        {"size_wh": (48, 64)},
    ],
)
def test_answer_to_another_question_is_wrong(change: dict[str, Any]) -> None:
    assert Checker(True).status(question(), Reply(OK, (answer(),))) == OK
    assert Checker(True).status(question(), Reply(OK, (answer(**change),))) == WRONG_ANSWER


@pytest.mark.parametrize("answers", [(), (answer(), answer())])
def test_no_answer_and_two_answers_are_wrong(answers: tuple[ModelReply, ...]) -> None:
    assert Checker(True).status(question(), Reply(OK, answers)) == WRONG_ANSWER


@pytest.mark.parametrize(("answers_repeat", "status"), [(True, WRONG_ANSWER), (False, OK)])
def test_another_text_about_the_same_image_is_wrong(answers_repeat: bool, status: str) -> None:
    checker = Checker(answers_repeat)
    other = Reply(OK, (answer(raw_text="KY"),))
    assert checker.status(question(), Reply(OK, (answer(),))) == OK
    assert checker.status(question(), other) == status
    assert checker.status(question(image_number=2), other) == OK
    assert checker.status(question(image_number=None), other) == OK


def test_comparison_is_right_when_all_its_answers_are() -> None:
    checker = Checker(True)
    both = (answer(), answer(OTHER_MODEL, raw_text="KY"))
    assert checker.status(question(COMPARED), Reply(OK, both)) == OK
    wrong = (answer(), answer(OTHER_MODEL, "captioning"))
    assert checker.status(question(COMPARED), Reply(OK, wrong)) == WRONG_ANSWER


def test_error_keeps_its_code() -> None:
    assert Checker(True).status(question(), Reply("overloaded")) == "overloaded"
