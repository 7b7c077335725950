from dataclasses import asdict, replace
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from service.errors import InvalidRequest
from service.inference.core import Comparison
from service.inference.prediction import Piece, TilesSummary
from service.inference.request_fields import PredictFields, parse_fields
from service.rpc.proto.vision_pb2 import PredictRequest
from service.rpc.vision import answer_message, comparison_message, event_message, request_fields
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
from tests.support.fake_service import NUM_IMAGE_TOKENS, served

BOX_MESSAGE = {"x1": 1.5, "y1": 2.0, "x2": 30.25, "y2": 40.0}
QUAD_MESSAGE = [{"x": x, "y": y} for x, y in QUAD]
RING_MESSAGE = {"points": [{"x": x, "y": y} for x, y in RING]}


@pytest.mark.parametrize(
    ("result", "kind", "expected"),
    [
        (TextResult("ä", True), "text", "ä"),
        (DetectionsResult((), True), "detections", {}),
        (
            DetectionsResult((Detection(BOX, "a", 0.5),), True),
            "detections",
            {"detections": [{"box": BOX_MESSAGE, "label": "a", "score": 0.5}]},
        ),
        (InstancesResult((), True), "instances", {}),
        (
            InstancesResult((Instance(BOX, "a", 0.5, (RING, RING), None),), True),
            "instances",
            {
                "instances": [
                    {
                        "box": BOX_MESSAGE,
                        "label": "a",
                        "score": 0.5,
                        "polygons": {"rings": [RING_MESSAGE] * 2},
                    }
                ]
            },
        ),
        (
            InstancesResult(
                (Instance(BOX, "a", 0.5, None, RunLengthMask((480, 640), "abc")),), True
            ),
            "instances",
            {
                "instances": [
                    {
                        "box": BOX_MESSAGE,
                        "label": "a",
                        "score": 0.5,
                        "mask": {"height": "480", "width": "640", "counts": "abc"},
                    }
                ]
            },
        ),
        (TextRegionsResult((), True), "text_regions", {}),
        (
            TextRegionsResult((TextRegion(QUAD, "HI", 0.25),), True),
            "text_regions",
            {"text_regions": [{"quad": QUAD_MESSAGE, "text": "HI", "score": 0.25}]},
        ),
    ],
)
def test_result_messages(result: Result, kind: str, expected: Any) -> None:
    message = answer_message(answer_of(result), "id-1")
    assert message.WhichOneof("result") == kind
    assert MessageToDict(message, preserving_proto_field_name=True)[kind] == expected


def test_other_fields_of_a_message() -> None:
    message = answer_message(answer_of(TextResult("a", True)), "id-1")
    assert (message.id, message.model, message.task, message.raw_text) == (
        "id-1",
        FLORENCE.id,
        "object_detection",
        "a",
    )
    assert (message.finish_reason, message.vision_cache) == ("stop", "joined")
    assert (message.image.width, message.image.height) == (640, 480)
    assert (message.usage.prompt_tokens, message.usage.generated_tokens) == (5, 3)
    assert message.usage.constrained_tokens == 2
    assert (message.timings_ms.queue, message.timings_ms.total) == (6.1, 30.1)


def test_tiles_are_those_of_the_json() -> None:
    sent = PredictRequest(task="ocr", tiles="2x3", overlap=0.25)
    _, request = parse_fields(PredictFields, request_fields(sent))
    assert (request.fields.tiles, request.fields.overlap) == (Grid(2, 3), 0.25)
    untiled = answer_of(TextResult("a", True))
    tiled = replace(untiled, tiles=TilesSummary(2, 3, 5, 1, 4), num_views=6)
    message = answer_message(tiled, "id-1")
    assert MessageToDict(message.tiles) == {
        "rows": "2",
        "columns": "3",
        "asked": "5",
        "skipped": "1",
        "merged": "4",
    }
    assert message.usage.image_tokens == 6 * NUM_IMAGE_TOKENS
    assert not answer_message(untiled, "id-1").HasField("tiles")


def test_message_about_a_view() -> None:
    found = DetectionsResult((Detection(BOX, "a", 0.5),), True)
    event = event_message(Piece("a", View((1, 2, 30, 40), found)), "id-1")
    assert event.WhichOneof("event") == "text"
    assert MessageToDict(event) == {
        "text": "a",
        "view": {
            "view": ["1", "2", "30", "40"],
            "detections": {"detections": [{"box": BOX_MESSAGE, "label": "a", "score": 0.5}]},
        },
    }
    assert not event_message(Piece("a"), "id-1").HasField("view")


def test_guarantee_message() -> None:
    sent = PredictRequest(task="ocr", min_precision=0.9)
    assert parse_fields(PredictFields, request_fields(sent))[1].fields.min_precision == 0.9
    proved = Guarantee(0.9, 0.95, 0.5, 4, 80, 2)
    answer = replace(answer_of(TextResult("a", True)), guarantee=proved)
    given = MessageToDict(
        answer_message(answer, "id-1").guarantee, preserving_proto_field_name=True
    )
    assert {name: float(value) for name, value in given.items()} == asdict(proved)


def test_comparison_message() -> None:
    _, request = parse_fields(PredictFields, {"task": "object_detection"})
    outcomes = (
        (served(FLORENCE), answer_of(TextResult("a", True))),
        (served(PALIGEMMA), InvalidRequest("no", "task")),
    )
    message = comparison_message(Comparison(request, (640, 480), outcomes), "id-1")
    first, second = message.answers
    assert (message.id, message.task, message.image.width) == ("id-1", "object_detection", 640)
    assert (first.model, first.answer.text) == (FLORENCE.id, "a")
    error = second.error
    assert (error.code, error.message, error.param, error.request_id) == (
        "invalid_request",
        "no",
        "task",
        "id-1",
    )
