"""JSON of REST to values: answers of every kind, and errors of the service and of proxies."""

import json
from dataclasses import replace
from typing import Any

import pytest

from diptych_client import (
    Answer,
    Comparison,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    Guarantee,
    InternalError,
    ModelFailure,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    Tiles,
    UnsupportedTask,
)
from diptych_client.errors import connection_failed
from diptych_client.results import Result
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_transports import json_from_message
from diptych_client.transports.messages import error_from_response, from_json, to_json
from service.schema.rendering import AnswerJson
from tests.support.client_answers import DETECTIONS, RESULTS, SIZE, answer


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_an_answer_survives_a_round_trip_and_conforms_to_the_api(result: Result) -> None:
    body = json.dumps(to_json(answer(result)))
    AnswerJson.model_validate_json(body)
    assert from_json(Answer, json.loads(body)) == answer(result)


def test_an_answer_says_if_its_scores_are_calibrated() -> None:
    calibrated = replace(answer(DETECTIONS), calibrated=True)
    assert from_json(Answer, to_json(calibrated)) == calibrated
    before = {name: value for name, value in to_json(calibrated).items() if name != "calibrated"}
    assert not from_json(Answer, before).calibrated  # a journal of an earlier client


def test_tiles_and_guarantees_survive_a_round_trip_over_both_transports() -> None:
    proved = Guarantee(0.95, 0.9, 0.5, 4, 80, 2)
    given = replace(answer(DETECTIONS), tiles=Tiles(2, 3, 5, 1, 4), guarantee=proved)
    body = to_json(given)
    AnswerJson.model_validate_json(json.dumps(body))
    assert from_json(Answer, body) == given
    message = pb.Answer(tiles=body["tiles"], guarantee=body["guarantee"])
    for name in ("tiles", "guarantee"):
        assert json_from_message(message)[name] == body[name]
        assert name not in json_from_message(pb.Answer())


def test_an_older_service_counts_no_constrained_tokens() -> None:
    body = to_json(answer(DETECTIONS))
    del body["usage"]["constrained_tokens"]
    assert from_json(Answer, body).usage.constrained_tokens == 0


def test_a_comparison_survives_a_round_trip() -> None:
    failure = ModelFailure("other", ErrorDetail("unsupported_task", "not offered", "task", "id-1"))
    comparison = Comparison("id-1", "object_detection", SIZE, (answer(DETECTIONS), failure))
    assert from_json(Comparison, json.loads(json.dumps(to_json(comparison)))) == comparison


def test_fields_of_a_newer_service_are_ignored() -> None:
    body = to_json(answer(DETECTIONS)) | {"unknown": 1}
    body["usage"]["unknown"] = body["image"]["unknown"] = body["timings_ms"]["unknown"] = 1
    assert isinstance(from_json(Answer, body), Answer)


@pytest.mark.parametrize("result", [{}, {"unknown": []}, {"text": 1}])
def test_an_unknown_kind_of_result_is_an_error(result: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no known kind|expected a text"):
        from_json(Answer, to_json(answer(DETECTIONS)) | {"result": result})


def test_the_error_of_a_json_body_has_its_class_and_detail() -> None:
    detail = {
        "code": "unsupported_task",
        "message": "m does not offer it",
        "param": "task",
        "request_id": "r",
    }
    error = error_from_response(422, {}, json.dumps({"error": detail}).encode(), "mine")
    assert isinstance(error, UnsupportedTask)
    assert (error.code, error.message, error.param, error.request_id) == tuple(detail.values())


def test_an_unknown_code_has_the_base_class() -> None:
    body = b'{"error": {"code": "unknown", "message": "m", "param": null, "request_id": "r"}}'
    error = error_from_response(418, {}, body, "mine")
    assert (type(error), error.code) == (DiptychError, "unknown")


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("illegal request line", "is this the gRPC port?"),
        ("Trying to connect an http1.x server", "is this the REST port?"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "does the service serve TLS?"),
    ],
)
def test_a_connection_to_the_wrong_port_has_a_hint(reason: str, hint: str) -> None:
    assert f"{reason} ({hint}" in connection_failed(reason, "r", "u", "GET /v1/models").message


def test_a_page_of_another_server_names_the_url() -> None:
    error = error_from_response(404, {}, b"Not Found", "mine", "http://a/b/v1/models")
    hint = "is this the URL of a Diptych service?"
    assert error.message == f"http://a/b/v1/models responded with status 404: Not Found; {hint}"


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
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error": "none of ours"}', b'{"error": {}}', b"\xff"]
)
def test_without_our_json_body_the_status_decides(
    status: int, kind: type[DiptychError], body: bytes
) -> None:
    error = error_from_response(status, {"retry-after": "7"}, body, "mine")
    assert type(error) is kind
    assert (error.request_id, error.retry_after_s) == ("mine", 7)
