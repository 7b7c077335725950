"""Bodies of REST to values: answers of every kind, and errors, also those that are not the service's."""

import json
from typing import Any

import pytest

from client import (
    Answer,
    Comparison,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    InternalError,
    ModelFailure,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    UnsupportedTask,
)
from client.rest_messages import (
    answer_from_json,
    answer_json,
    comparison_from_json,
    comparison_json,
    error_from_response,
)
from client.results import Result
from service.wire import AnswerJson
from tests.support.client_answers import DETECTIONS, RESULTS, SIZE, answer


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_an_answer_is_read_as_it_was_written_and_keeps_to_the_contract(result: Result) -> None:
    body = json.dumps(answer_json(answer(result)))
    AnswerJson.model_validate_json(body)
    assert answer_from_json(json.loads(body)) == answer(result)


def test_a_comparison_is_read_as_it_was_written() -> None:
    failure = ModelFailure("other", ErrorDetail("unsupported_task", "not offered", "task", "id-1"))
    comparison = Comparison("id-1", "object_detection", SIZE, (answer(DETECTIONS), failure))
    assert comparison_from_json(json.loads(json.dumps(comparison_json(comparison)))) == comparison


def test_fields_of_a_newer_service_are_passed_over() -> None:
    body = answer_json(answer(DETECTIONS)) | {"news": 1}
    body["usage"]["news"] = body["image"]["news"] = body["timings_ms"]["news"] = 1
    assert isinstance(answer_from_json(body), Answer)


@pytest.mark.parametrize("result", [{}, {"news": []}, {"text": 1}])
def test_a_result_of_an_unknown_kind_is_an_error(result: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no known kind"):
        answer_from_json(answer_json(answer(DETECTIONS)) | {"result": result})


def test_the_error_of_a_body_has_its_class_and_its_words() -> None:
    detail = {"code": "unsupported_task", "message": "m does not offer it", "param": "task", "request_id": "r"}
    error = error_from_response(422, {}, json.dumps({"error": detail}).encode(), "mine")
    assert isinstance(error, UnsupportedTask)
    assert (error.code, error.message, error.param, error.request_id) == tuple(detail.values())


def test_a_code_of_a_newer_service_is_the_class_of_all() -> None:
    body = b'{"error": {"code": "news", "message": "m", "param": null, "request_id": "r"}}'
    error = error_from_response(418, {}, body, "mine")
    assert (type(error), error.code) == (DiptychError, "news")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (413, PayloadTooLarge),
        (429, Overloaded),
        (500, InternalError),
        (502, ConnectionFailed),
        (503, NotReady),
        (504, DeadlineExceeded),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "none of ours"}', b'{"error": {}}', b"\xff"])
def test_without_the_contracts_body_the_status_tells(status: int, kind: type[DiptychError], body: bytes) -> None:
    error = error_from_response(status, {"retry-after": "7"}, body, "mine")
    assert type(error) is kind
    assert (error.request_id, error.retry_after_s) == ("mine", 7)
