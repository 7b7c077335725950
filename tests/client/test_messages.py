"""Requests and responses: the same values over REST and gRPC, and errors with the same classes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from pydantic import BaseModel

from diptych_client import (
    Analysis,
    Answer,
    AnswerOptions,
    Comparison,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    Guarantee,
    InternalError,
    InvalidRequest,
    ModelFailure,
    Overloaded,
    PayloadTooLarge,
    StepAnswer,
    StepAnswers,
    Task,
    TaskParameters,
    Tiles,
    UnsupportedTask,
)
from diptych_client.json_values import from_json, to_json
from diptych_client.requests import FieldValue, Request, non_null_fields
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_transports import (
    error_from_status,
    json_from_message,
    request_message,
)
from diptych_client.transports.messages import (
    ANALYZE,
    COMPARE,
    MODELS,
    PREDICT,
    TASKS,
    Call,
    Operation,
    check_status,
)
from service.rpc.server import message_of, request_fields
from service.schema.rendering import AnalysisJson, AnswerJson, ComparisonJson
from tests.support.client_answers import DETECTIONS, RESULTS, SIZE, answer

CODE = grpc.StatusCode
CALL = Call(PREDICT, Request(), "mine", 0.0)
DETAIL = ErrorDetail("unsupported_task", "not offered", "task", "id-1")
PARAMETERS = TaskParameters(labels=["a", "b; c"], region=(1, 2, 3.5, 4), question="wie viele?")
OPTIONS = AnswerOptions(temperature=0.0, seed=0, constrained=False, tiles=6)
FIELDS: dict[str, FieldValue] = {"task": "some_task", **non_null_fields(PARAMETERS, OPTIONS)}


def test_message_has_the_same_fields() -> None:
    message = request_message(pb.PredictRequest, Request(b"i", FIELDS))
    assert message.image == b"i"
    lists = {"labels": ["a", "b; c"], "region": [1, 2, 3.5, 4]}
    assert request_fields(message) == {**FIELDS, **lists}
    steps = ({"id": "b", "task": "ocr"}, {"id": "a", "each": "b", "region": (1, 2, 3, 4)})
    analysis = request_message(pb.AnalyzeRequest, Request(b"i", {"steps": steps}))
    assert request_fields(analysis) == {"steps": [steps[0], {**steps[1], "region": [1, 2, 3, 4]}]}
    with pytest.raises(InvalidRequest, match="only REST takes one") as caught:
        request_message(pb.PredictRequest, Request("https://example.org/a.png", FIELDS))
    assert caught.value.param == "image"


FAILURE = ModelFailure("other", DETAIL)
PLAIN = answer(DETECTIONS)
TILED = replace(
    PLAIN,
    calibrated=True,
    labels=("a", "b"),
    tiles=Tiles(2, 3, 5, 1, 4),
    guarantee=Guarantee(0.95, 0.9, 0.5, 4, 80, 2),
    familiarity=0.25,
    image_embedding="AACAPw==",
)
OUTCOMES = (
    StepAnswer(PLAIN, 0, (1, 2, 3, 4)),
    StepAnswer(ModelFailure("other", replace(DETAIL, param=None))),
)
ANALYSIS = Analysis("id-1", SIZE, (StepAnswers("a", "ocr", True, OUTCOMES),))


@pytest.mark.parametrize(
    ("operation", "schema", "message", "value"),
    [
        *((PREDICT, AnswerJson, pb.Answer, answer(result)) for result in RESULTS),
        (PREDICT, AnswerJson, pb.Answer, TILED),
        (COMPARE, ComparisonJson, pb.Comparison, Comparison("1", "t", SIZE, (TILED, FAILURE))),
        (ANALYZE, AnalysisJson, pb.Analysis, ANALYSIS),
    ],
)
def test_answer_conforms_to_the_api_and_is_read_back(
    operation: Operation[Any], schema: type[BaseModel], message: type[Message], value: object
) -> None:
    body = json.dumps(to_json(value))
    document = schema.model_validate_json(body).model_dump()
    assert operation.parse(json.loads(body) | {"of_a_newer_service": 1}) == value
    assert operation.parse(json_from_message(message_of(message, document))) == value


def test_option_that_was_not_asked_for_is_unset() -> None:
    for unset in (to_json(PLAIN), json_from_message(pb.Answer())):
        assert not {"tiles", "guarantee", "labels"} & unset.keys()
    assert list(ANALYSIS.step("a").of(0)) == [PLAIN]
    with pytest.raises(KeyError):
        ANALYSIS.step("b")


SHORT_BOX = {"box": [1, 2, 3], "label": "a", "score": 1}


@pytest.mark.parametrize(
    "fields",
    [
        *({"result": {}}, {"result": {"unknown": []}}, {"result": {"text": 1}}, {"tiles": {}}),
        {"result": {"detections": [SHORT_BOX]}},
        *({"result": {"detections": [SHORT_BOX | {"box": [1, 2, 3, x]}]}} for x in ("NaN", 1e999)),
    ],
    ids=str,
)
def test_unknown_result_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no known kind|expected a text|is shorter|a finite"):
        from_json(Answer, to_json(PLAIN) | fields)
    with pytest.raises(ValueError, match="no known kind"):
        PREDICT.parse(json_from_message(pb.Answer(id="r")))


def test_listings_are_parsed() -> None:
    fields: Mapping[str, Any] = {"id": "m", "parameters": 5, "tasks": ["ocr"], "license": "MIT"}
    response = pb.ListModelsResponse(models=[pb.Model(**fields)])
    (model,) = MODELS.parse(json_from_message(response))
    assert (model.id, model.parameters, model.license) == ("m", 5, "MIT")
    assert (model.tasks, model.features, model.adapter_of) == (("ocr",), (), None)
    texts = {"id": "ocr", "description": "Read it.", "result": "text"}
    task = pb.Task(**texts, parameters_json_schema='{"properties": {}}', models=["m"])
    listing = json_from_message(pb.ListTasksResponse(tasks=[task]))
    assert TASKS.parse(listing) == (Task("ocr", "Read it.", "text", {"properties": {}}, ("m",)),)


def rest_error(status: int, body: bytes) -> DiptychError:
    with pytest.raises(DiptychError) as caught:
        check_status(httpx.Response(status, headers={"Retry-After": "7"}, content=body), CALL)
    assert caught.value.retry_after_s == 7
    return caught.value


def test_error_has_the_detail_of_the_service() -> None:
    body = json.dumps({"error": to_json(DETAIL)}).encode()
    trailing = {"diptych-code": DETAIL.code, "diptych-param": "task", "x-request-id": "id-1"}
    grpc_error = error_from_status(
        CODE.UNAVAILABLE, DETAIL.message, trailing | {"retry-after": "7"}, CALL
    )
    for error in (rest_error(422, body), grpc_error):
        assert isinstance(error, UnsupportedTask)
        assert (error.detail, error.retry_after_s) == (DETAIL, 7)
    unknown = rest_error(418, body.replace(b"unsupported_task", b"unknown"))
    assert (type(unknown), unknown.code) == (DiptychError, "unknown")


def test_status_decides_without_a_detail() -> None:
    kinds = {413: PayloadTooLarge, 429: Overloaded, 500: InternalError, 502: ConnectionFailed}
    for status, kind in kinds.items():
        for body in (b"", b"[]", b'{"error": "none of ours"}', b'{"error": {}}', b"\xff"):
            error = rest_error(status, body)
            assert (type(error), error.request_id) == (kind, "mine")
    grpc_kinds = {
        CODE.UNAVAILABLE: ConnectionFailed,
        CODE.RESOURCE_EXHAUSTED: PayloadTooLarge,
        CODE.DEADLINE_EXCEEDED: DeadlineExceeded,
        CODE.UNIMPLEMENTED: InternalError,
    }
    for code, grpc_kind in grpc_kinds.items():
        error = error_from_status(code, "why", {}, CALL)
        assert (type(error), error.request_id) == (grpc_kind, "mine")
