"""Messages from the JSON of REST: geometry, members of a oneof, and all other fields by name."""

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from service.inference.prediction import Piece, TilesSummary
from service.inference.request_fields import PredictFields, parse_fields
from service.rpc.proto import vision_pb2 as pb
from service.rpc.vision import event_message, message_of, request_fields
from service.schema.rendering import answer_json, prediction_event
from tasks.results import Detection, DetectionsResult, TextResult
from tasks.scores import Guarantee
from tasks.tiles.grid import Grid
from tasks.tiles.merging import View
from tests.service.schema.test_rendering import BOX, answer_of

OBJECT = {"box": [1.5, 2, 30.25, 40], "label": "a", "score": 0.5}
OBJECT_MESSAGE = OBJECT | {"box": {"x1": 1.5, "y1": 2.0, "x2": 30.25, "y2": 40.0}}
QUAD = [[1, 2], [3, 4], [5, 6], [7, 8]]
POINTS = [{"x": x, "y": y} for x, y in QUAD]
MASK = {"size": [480, 640], "counts": "abc"}
ERROR = {"code": "invalid_request", "message": "no", "param": "task", "request_id": "id-1"}


def fields(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"text": "ä"}, "ä"),
        ({"detections": []}, {}),
        ({"detections": [OBJECT]}, {"detections": [OBJECT_MESSAGE]}),
        (
            {"instances": [OBJECT | {"polygons": [QUAD, QUAD]}]},
            {"instances": [OBJECT_MESSAGE | {"polygons": {"rings": [{"points": POINTS}] * 2}}]},
        ),
        (
            {"instances": [OBJECT | {"mask": MASK}]},
            {
                "instances": [
                    OBJECT_MESSAGE | {"mask": {"height": "480", "width": "640", "counts": "abc"}}
                ]
            },
        ),
        (
            {"text_regions": [{"quad": QUAD, "text": "HI", "score": 0.25}]},
            {"text_regions": [{"quad": POINTS, "text": "HI", "score": 0.25}]},
        ),
    ],
)
def test_result_messages(result: dict[str, Any], expected: Any) -> None:
    (kind,) = result
    message = message_of(pb.Answer, {"result": result})
    assert message.WhichOneof("result") == kind
    assert fields(message) == {kind: expected}


def test_outcomes_of_models() -> None:
    answer = {"id": "id-1", "model": "a", "result": {"text": "b"}}
    answers = [answer, {"model": "c", "error": ERROR}]
    image = {"width": 640, "height": 480}
    message = message_of(pb.Comparison, {"id": "id-1", "image": image, "answers": answers})
    first, second = message.answers
    assert (message.id, message.image.width) == ("id-1", 640)
    assert (first.model, first.answer.text, first.answer.id) == ("a", "b", "id-1")
    assert fields(second) == {"model": "c", "error": ERROR}


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
    assert (request.fields.tiles, request.fields.min_precision) == (Grid(2, 3), 0.9)
    steps = [pb.Step(id="a", task="ocr", region=[1, 2]), pb.Step(id="b", models=["m"])]
    assert request_fields(pb.AnalyzeRequest(image=b"x", steps=steps)) == {
        "steps": [{"id": "a", "task": "ocr", "region": [1, 2]}, {"id": "b", "models": ["m"]}]
    }


def test_message_about_a_view() -> None:
    detected = DetectionsResult((Detection(BOX, "a", 0.5),), True)
    piece = Piece("a", View((1, 2, 30, 40), detected))
    event = event_message(*prediction_event(piece, "id-1"))
    assert event.WhichOneof("event") == "text"
    view = {"view": ["1", "2", "30", "40"], "detections": {"detections": [OBJECT_MESSAGE]}}
    assert fields(event) == {"text": "a", "view": view}
    assert fields(event_message(*prediction_event(Piece("a"), "id-1"))) == {"text": "a"}
