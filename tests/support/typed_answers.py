"""Answers with a given result, for tests of what interfaces make of it."""

from typing import cast

from service.inference.prediction import Answer
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.runner_calls import WrittenAnswers
from tasks.results import Result
from tests.support.fake_service import FLORENCE_ID, served_models

SIZE_WH = (200, 100)


def typed_answer(result: Result) -> Answer:
    """Return an answer about an image of `SIZE_WH`.

    No interface of shapes reads its generated text.
    """
    _, request = parse_fields(PredictFields, {"task": "ocr"})
    written = cast("WrittenAnswers", None)
    return Answer(served_models().get(FLORENCE_ID), request, SIZE_WH, result, written, {})
