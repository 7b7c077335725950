"""The check of answers."""

from typing import Any

import pytest

from loadtest.load.senders.replies import OK, WRONG_ANSWER, Checker, Reply
from loadtest.load.traffic.questions import COMPARED
from tests.support.load_samples import model_reply, question


def test_an_answer_to_the_question_is_right() -> None:
    assert Checker(True).status(question(), Reply(OK, (model_reply(),))) == OK


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"task": "captioning"},
        {"result_key": "detections"},
        {"size_wh": (48, 64)},
    ],
)
def test_an_answer_to_another_question_is_wrong(change: dict[str, Any]) -> None:
    assert Checker(True).status(question(), Reply(OK, (model_reply(**change),))) == WRONG_ANSWER


@pytest.mark.parametrize("answers", [(), (model_reply(), model_reply())])
def test_no_answer_and_two_answers_to_one_question_are_wrong(answers: tuple[Any, ...]) -> None:
    assert Checker(True).status(question(), Reply(OK, answers)) == WRONG_ANSWER


def test_another_text_about_the_same_image_is_wrong_unless_texts_may_differ() -> None:
    other = Reply(OK, (model_reply(raw_text="KY"),))
    for answers_repeat, status in ((True, WRONG_ANSWER), (False, OK)):
        checker = Checker(answers_repeat)
        assert checker.status(question(), Reply(OK, (model_reply(),))) == OK
        assert checker.status(question(), other) == status
        assert checker.status(question(image_number=2), other) == OK
        assert checker.status(question(image_number=None), other) == OK


def test_a_comparison_is_right_when_all_its_answers_are() -> None:
    florence = model_reply()
    paligemma = model_reply(model="paligemma-mini", raw_text="KY")
    checker = Checker(True)
    assert checker.status(question(COMPARED), Reply(OK, (florence, paligemma))) == OK
    wrong = model_reply(model="paligemma-mini", task="captioning")
    assert checker.status(question(COMPARED), Reply(OK, (florence, wrong))) == WRONG_ANSWER


def test_an_error_keeps_its_code() -> None:
    assert Checker(True).status(question(), Reply("overloaded")) == "overloaded"
