from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from service.errors import InvalidRequest
from service.inference.core import Comparison
from service.inference.prediction import Piece, TilesSummary
from service.inference.request_fields import PredictFields, parse_fields
from service.rpc.proto import vision_pb2 as pb
from service.rpc.vision import event_message, message_of, request_fields
from service.schema.rendering import answer_json, comparison_json, prediction_event
from tasks.results import (
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    RunLengthMask,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.scores import Guarantee
from tasks.tiles.grid import Grid
from tasks.tiles.merging import View
from tests.service.schema.test_rendering import BOX, QUAD, RING, answer_of
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.fake_service import served

BOX_MESSAGE = {"x1": 1.5, "y1": 2.0, "x2": 30.25, "y2": 40.0}
QUAD_MESSAGE = [{"x": x, "y": y} for x, y in QUAD]
RING_MESSAGE = {"points": [{"x": x, "y": y} for x, y in RING]}
OBJECT = {"box": BOX_MESSAGE, "label": "a", "score": 0.5}
DETECTED = DetectionsResult((Detection(BOX, "a", 0.5),), True)
MASK = RunLengthMask((480, 640), "abc")
MASK_MESSAGE = {"height": "480", "width": "640", "counts": "abc"}


def fields(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize(
    ("result", "kind", "expected"),
    [
        (TextResult("ä", True), "text", "ä"),
        (DetectionsResult((), True), "detections", {}),
        (DETECTED, "detections", {"detections": [OBJECT]}),
        (
            InstancesResult((Instance(BOX, "a", 0.5, (RING, RING), None),), True),
            "instances",
            {"instances": [OBJECT | {"polygons": {"rings": [RING_MESSAGE] * 2}}]},
        ),
        (
            InstancesResult((Instance(BOX, "a", 0.5, None, MASK),), True),
            "instances",
            {"instances": [OBJECT | {"mask": MASK_MESSAGE}]},
        ),
        (
            TextRegionsResult((TextRegion(QUAD, "HI", 0.25),), True),
            "text_regions",
            {"text_regions": [{"quad": QUAD_MESSAGE, "text": "HI", "score": 0.25}]},
        ),
    ],
)
def test_result_messages(result: Result, kind: str, expected: Any) -> None:
    message = message_of(pb.Answer, answer_json(answer_of(result), "id-1").model_dump())
    assert message.WhichOneof("result") == kind
    assert fields(message)[kind] == expected


@pytest.mark.parametrize("is_tiled", [True, False])
def test_other_fields_are_those_of_json(is_tiled: bool) -> None:
    answer = answer_of(TextResult("a", True))
    if is_tiled:
        guarantee = Guarantee(0.9, 0.95, 0.5, 4, 80, 2)
        answer = replace(answer, tiles=TilesSummary(2, 3, 5, 1, 4), guarantee=guarantee)
    document = answer_json(answer, "id-1").model_dump()
    message = message_of(pb.Answer, document)
    assert [message.HasField(name) for name in ("tiles", "guarantee")] == [is_tiled] * 2
    for name, value in fields(message).items():
        if isinstance(value, dict):
            numbers = {part: float(number) for part, number in value.items()}
            zeros = {part: 0 for part in document[name] if part not in numbers}
            assert numbers | zeros == document[name]
        elif name != "text":
            assert value == document[name]


def test_fields_of_a_request() -> None:
    sent = pb.PredictRequest(image=b"x", task="ocr", tiles="2x3", overlap=0.25, min_precision=0.9)
    assert request_fields(sent).keys() == {"task", "tiles", "overlap", "min_precision"}
    _, request = parse_fields(PredictFields, request_fields(sent))
    assert (request.fields.tiles, request.fields.overlap) == (Grid(2, 3), 0.25)
    assert request.fields.min_precision == 0.9
    steps = [pb.Step(id="a", task="ocr", region=[1, 2]), pb.Step(id="b", models=["m"])]
    assert request_fields(pb.AnalyzeRequest(image=b"x", steps=steps)) == {
        "steps": [{"id": "a", "task": "ocr", "region": [1, 2]}, {"id": "b", "models": ["m"]}]
    }


def test_message_about_a_view() -> None:
    piece = Piece("a", View((1, 2, 30, 40), DETECTED))
    event = event_message(*prediction_event(piece, "id-1"))
    assert event.WhichOneof("event") == "text"
    view = {"view": ["1", "2", "30", "40"], "detections": {"detections": [OBJECT]}}
    assert fields(event) == {"text": "a", "view": view}
    assert fields(event_message(*prediction_event(Piece("a"), "id-1"))) == {"text": "a"}


def test_comparison_message() -> None:
    _, request = parse_fields(PredictFields, {"task": "object_detection"})
    outcomes = (
        (served(FLORENCE), answer_of(TextResult("a", True))),
        (served(PALIGEMMA), InvalidRequest("no", "task")),
    )
    comparison = comparison_json(Comparison(request, (640, 480), outcomes), "id-1")
    message = message_of(pb.Comparison, comparison.model_dump())
    first, second = message.answers
    assert (message.id, message.task, message.image.width) == ("id-1", "object_detection", 640)
    assert (first.model, first.answer.text, first.answer.id) == (FLORENCE.id, "a", "id-1")
    error = {"code": "invalid_request", "message": "no", "param": "task", "request_id": "id-1"}
    assert fields(second) == {"model": PALIGEMMA.id, "error": error}
