"""Messages of gRPC to the same values, and statuses of calls to the same errors, as over REST."""

import grpc
import pytest

from diptych_client import (
    Analysis,
    ConnectionFailed,
    DiptychError,
    ErrorDetail,
    InstancesResult,
    InternalError,
    ModelFailure,
    NotReady,
    PayloadTooLarge,
    Task,
    TextRegionsResult,
)
from diptych_client.requests import Request
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_transports import (
    error_from_status,
    json_from_message,
    request_message,
)
from diptych_client.transports.messages import MODELS, PREDICT, TASKS, Call, from_json
from tests.support.client_answers import SQUARE

CODE = grpc.StatusCode
CALL = Call(PREDICT, Request(), "mine", 0.0)


def test_the_trailing_metadata_has_the_error_detail() -> None:
    trailing = {
        "diptych-code": "not_ready",
        "diptych-param": "model",
        "x-request-id": "r",
        "retry-after": "2",
    }
    error = error_from_status(CODE.UNAVAILABLE, "starting", trailing, CALL)
    assert isinstance(error, NotReady)
    assert (error.code, error.message, error.param, error.request_id) == (
        "not_ready",
        "starting",
        "model",
        "r",
    )
    assert error.retry_after_s == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (CODE.UNAVAILABLE, ConnectionFailed),
        (CODE.RESOURCE_EXHAUSTED, PayloadTooLarge),
        (CODE.UNIMPLEMENTED, InternalError),
    ],
)
def test_without_trailing_metadata_the_status_decides(
    status: grpc.StatusCode, kind: type[DiptychError]
) -> None:
    error = error_from_status(status, "why", {}, CALL)
    assert type(error) is kind
    assert error.request_id == "mine"


def test_listings_have_tuples_and_none_for_what_is_not_set() -> None:
    given = pb.Model(
        id="m", family="florence2", parameters=5, tasks=["ocr", "captioning"], license="MIT"
    )
    (model,) = MODELS.parse(json_from_message(pb.ListModelsResponse(models=[given])))
    assert (model.id, model.family, model.parameters, model.license) == ("m", "florence2", 5, "MIT")
    assert (model.tasks, model.features, model.adapter_of) == (("ocr", "captioning"), (), None)
    schema = '{"properties": {}}'
    task = pb.Task(
        id="ocr", description="Read it.", result="text", parameters_json_schema=schema, models=["m"]
    )
    expected = Task("ocr", "Read it.", "text", {"properties": {}}, ("m",))
    listing = json_from_message(pb.ListTasksResponse(tasks=[task]))
    assert TASKS.parse(listing) == (expected,)


def test_outlines_are_tuples_of_points() -> None:
    points = [pb.Point(x=x, y=y) for x, y in SQUARE]
    ring = pb.Polygons(rings=[pb.Ring(points=points)])
    instances = pb.Instances(instances=[pb.Instance(label="a", score=0.5, polygons=ring)])
    answer = PREDICT.parse(json_from_message(pb.Answer(instances=instances)))
    assert isinstance(answer.result, InstancesResult)
    assert answer.result.instances[0].polygons_xy == (SQUARE,)
    regions = pb.TextRegions(text_regions=[pb.TextRegion(quad=points, text="HI", score=0.5)])
    answer = PREDICT.parse(json_from_message(pb.Answer(text_regions=regions)))
    assert isinstance(answer.result, TextRegionsResult)
    assert answer.result.text_regions[0].quad_xy == SQUARE


def test_an_answer_without_a_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="no known kind"):
        PREDICT.parse(json_from_message(pb.Answer(id="r")))


def test_the_steps_of_an_analysis_are_messages() -> None:
    step = {"id": "a", "task": "ocr", "each": "b", "models": ["x", "y"], "region": (1, 2, 3, 4)}
    request = Request(b"image", {"steps": ({"id": "b", "task": "object_detection"}, step)})
    message = request_message(pb.AnalyzeRequest, request)
    assert (message.image, [each.id for each in message.steps]) == (b"image", ["b", "a"])
    assert list(message.steps[1].models) == ["x", "y"]
    assert list(message.steps[1].region) == [1, 2, 3, 4]
    assert not message.steps[1].HasField("view")


def test_an_analysis_has_its_answers_and_errors() -> None:
    error = pb.Error(code="overloaded", message="busy", request_id="1")
    answers = [pb.StepAnswer(of=2, view=(1, 2, 3, 4), model="x", error=error)]
    steps = [pb.StepAnswers(id="a", task="ocr", truncated=True, answers=answers)]
    message = pb.Analysis(id="1", image=pb.Image(width=3, height=4), steps=steps)
    analysis = from_json(Analysis, json_from_message(message))
    (answer,) = analysis.step("a").answers
    assert (answer.of, answer.view_xyxy) == (2, (1, 2, 3, 4))
    assert answer.outcome == ModelFailure("x", ErrorDetail("overloaded", "busy", None, "1"))
    assert (analysis.image.width, analysis.step("a").truncated) == (3, True)
    with pytest.raises(KeyError):
        analysis.step("b")
