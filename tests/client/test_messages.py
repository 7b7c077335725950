"""Requests and responses: the same values over REST and gRPC, and errors with the same classes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest

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
    TextResult,
    Tiles,
    UnsupportedTask,
)
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
    form_values,
    from_json,
    to_json,
)
from diptych_client.transports.rest_transports import check_status
from service.schema.rendering import AnswerJson
from tests.support.client_answers import DETECTIONS, RESULTS, SIZE, SQUARE, answer

CODE = grpc.StatusCode
CALL = Call(PREDICT, Request(), "mine", 0.0)
DETAIL = ErrorDetail("unsupported_task", "not offered", "task", "id-1")
FAILURE = ModelFailure("other", DETAIL)
PARAMETERS = TaskParameters(labels=["a", "b; c"], region=(1, 2, 3.5, 4), question="wie viele?")
OPTIONS = AnswerOptions(temperature=0.0, seed=0, constrained=False, tiles=6)
FIELDS: dict[str, FieldValue] = {"task": "some_task", **non_null_fields(PARAMETERS, OPTIONS)}


def test_form_has_lists_numbers_and_booleans_as_json() -> None:
    assert form_values(FIELDS) == {
        "task": "some_task",
        "labels": '["a", "b; c"]',
        "region": "[1, 2, 3.5, 4]",
        "question": "wie viele?",
        "temperature": "0.0",
        "seed": "0",
        "constrained": "false",
        "tiles": "6",
    }


def test_message_has_the_same_fields() -> None:
    message = request_message(pb.PredictRequest, Request(b"i", FIELDS))
    assert message.image == b"i"
    for name, value in FIELDS.items():
        field = getattr(message, name)
        assert (tuple(field) if isinstance(value, tuple) else field) == value, name
        assert isinstance(value, tuple) or name == "task" or message.HasField(name), name
    steps = ({"id": "b", "task": "ocr"}, {"id": "a", "each": "b", "region": (1, 2, 3, 4)})
    first, second = request_message(pb.AnalyzeRequest, Request(b"i", {"steps": steps})).steps
    assert (first.id, second.each, list(second.region)) == ("b", "b", [1, 2, 3, 4])
    assert not second.HasField("view")


def test_url_is_sent_over_rest_alone() -> None:
    with pytest.raises(InvalidRequest, match="only REST takes one") as caught:
        request_message(pb.PredictRequest, Request("https://example.org/a.png", FIELDS))
    assert caught.value.param == "image"


def test_answer_is_read_back_and_conforms_to_the_api() -> None:
    proof = Guarantee(0.95, 0.9, 0.5, 4, 80, 2)
    tiled = replace(answer(DETECTIONS), tiles=Tiles(2, 3, 5, 1, 4), guarantee=proof)
    for value in (*map(answer, RESULTS), replace(tiled, calibrated=True)):
        body = json.dumps(to_json(value))
        AnswerJson.model_validate_json(body)
        assert from_json(Answer, json.loads(body) | {"of_a_newer_service": 1}) == value
    body = to_json(tiled)
    message = json_from_message(pb.Answer(tiles=body["tiles"], guarantee=body["guarantee"]))
    assert {name: message[name] for name in ("tiles", "guarantee")}.items() <= body.items()
    for unset in (to_json(answer(DETECTIONS)), json_from_message(pb.Answer())):
        assert not {"tiles", "guarantee", "labels"} & unset.keys()


SHORT_BOX = {"box": [1, 2, 3], "label": "a", "score": 1}


@pytest.mark.parametrize(
    "fields",
    [
        *({"result": {}}, {"result": {"unknown": []}}, {"result": {"text": 1}}, {"tiles": {}}),
        {"result": {"detections": [SHORT_BOX]}},
    ],
    ids=str,
)
def test_unknown_result_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no known kind|expected a text|is shorter"):
        from_json(Answer, to_json(answer(DETECTIONS)) | fields)
    with pytest.raises(ValueError, match="no known kind"):
        PREDICT.parse(json_from_message(pb.Answer(id="r")))


def test_comparison_and_analysis_are_read_back() -> None:
    comparison = Comparison("id-1", "object_detection", SIZE, (answer(DETECTIONS), FAILURE))
    assert from_json(Comparison, json.loads(json.dumps(to_json(comparison)))) == comparison
    failure = ModelFailure("other", replace(DETAIL, param=None))
    answers = (StepAnswer(answer(DETECTIONS), 0, (1, 2, 3, 4)), StepAnswer(failure))
    analysis = Analysis("id-1", SIZE, (StepAnswers("a", "ocr", True, answers),))
    assert from_json(Analysis, json.loads(json.dumps(to_json(analysis)))) == analysis
    assert list(analysis.step("a").of(0)) == [answer(DETECTIONS)]
    with pytest.raises(KeyError):
        analysis.step("b")


def test_messages_are_the_json_of_rest() -> None:
    points = [pb.Point(x=x, y=y) for x, y in SQUARE]
    rings = pb.Polygons(rings=[pb.Ring(points=points)])
    instance = pb.Instance(label="a", score=0.5, polygons=rings, box=pb.Box(x2=2))
    message = json_from_message(pb.Answer(instances=pb.Instances(instances=[instance])))
    (item,) = message["result"]["instances"]
    assert (item["polygons"], item["box"]) == ([list(SQUARE)], (0, 0, 2, 0))
    regions = pb.TextRegions(text_regions=[pb.TextRegion(quad=points, text="HI", score=0.5)])
    message = json_from_message(pb.Answer(text_regions=regions))
    assert message["result"]["text_regions"] == [{"quad": list(SQUARE), "text": "HI", "score": 0.5}]
    error = pb.Error(code="overloaded", message="busy", request_id="1")
    answers = [pb.StepAnswer(of=2, view=(1, 2, 3, 4), model="x", error=error)]
    steps = [pb.StepAnswers(id="a", task="ocr", truncated=True, answers=answers)]
    image = pb.Image(width=3, height=4)
    analysis = ANALYZE.parse(json_from_message(pb.Analysis(id="1", image=image, steps=steps)))
    failure = ModelFailure("x", ErrorDetail("overloaded", "busy", None, "1"))
    assert analysis.step("a").answers == (StepAnswer(failure, 2, (1, 2, 3, 4)),)
    assert (analysis.image.width, analysis.step("a").truncated) == (3, True)
    message = pb.Comparison(image=image, answers=[pb.ModelAnswer(answer=pb.Answer(text="EXIT"))])
    (outcome,) = COMPARE.parse(json_from_message(message)).answers
    assert isinstance(outcome, Answer)
    assert outcome.result == TextResult("EXIT")


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
