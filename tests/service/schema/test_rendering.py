import json
from typing import Any

import pytest

from service.inference.prediction import Answer, Stage
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.runner_calls import WrittenAnswers
from service.schema.rendering import RESULT, answer_json
from tasks.results import (
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    Ring,
    RunLengthMask,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tests.support.catalog import FLORENCE
from tests.support.fake_service import NUM_IMAGE_TOKENS, served
from wire.runner_messages import FinishReason, FoundFeatures, Written

BOX = (1.5, 2.0, 30.25, 40.0)
QUAD = ((1.0, 2.0), (3.0, 2.0), (3.0, 4.0), (1.0, 4.0))
RING = ((1.0, 2.0), (3.0, 2.0), (3.0, 4.0))
TIMES_S: dict[Stage, float] = {
    "preprocess": 0.001,
    "encode_queue": 0.002,
    "encode": 0.003,
    "decode_queue": 0.0041,
    "prefill": 0.005,
    "decode": 0.006,
    "postprocess": 0.0000004,
    "total": 0.0301,
}


def written(text: str, finish_reason: FinishReason = "stop") -> Written:
    return Written(
        text=text,
        token_ends=[len(text)],
        logprobs=[-0.5],
        finish_reason=finish_reason,
        num_prompt_tokens=5,
        num_generated_tokens=3,
        num_constrained_tokens=2,
        queue_s=0,
        prefill_s=0,
        decode_s=0,
    )


def answer_of(result: Result, *sequences: Written) -> Answer:
    _, request = parse_fields(PredictFields, {"task": "object_detection"})
    features = FoundFeatures(outcome="joined")
    answers = WrittenAnswers(sequences or (written("a"),), features, NUM_IMAGE_TOKENS, 0, 0, 0, 0)
    return Answer(served(FLORENCE), request, (640, 480), result, answers, TIMES_S)


def answer(result: Result, *sequences: Written) -> dict[str, Any]:
    """Return the body as it is sent."""
    body = answer_json(answer_of(result, *sequences), "id-1")
    document: dict[str, Any] = json.loads(body.model_dump_json())
    return document


OBJECT = {"box": list(BOX), "label": "a", "score": 0.5}
MASK = RunLengthMask((480, 640), "abc")
POINTS = [[1, 2], [3, 2], [3, 4]]


def instances(rings: tuple[Ring, ...] | None, mask: RunLengthMask | None = None) -> Result:
    return InstancesResult((Instance(BOX, "a", 0.5, rings, mask),), True)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (TextResult("a\n<loc_1> ä", True), {"text": "a\n<loc_1> ä"}),
        (DetectionsResult((), False), {"detections": []}),
        (DetectionsResult((Detection(BOX, "a", 0.5),), True), {"detections": [OBJECT]}),
        (InstancesResult((), True), {"instances": []}),
        (instances((RING, RING)), {"instances": [OBJECT | {"polygons": [POINTS, POINTS]}]}),
        (instances(()), {"instances": [OBJECT | {"polygons": []}]}),
        (
            instances(None, MASK),
            {"instances": [OBJECT | {"mask": {"size": [480, 640], "counts": "abc"}}]},
        ),
        (TextRegionsResult((), True), {"text_regions": []}),
        (
            TextRegionsResult((TextRegion(QUAD, "HI", 0.25),), True),
            {"text_regions": [{"quad": [*POINTS, [1, 4]], "text": "HI", "score": 0.25}]},
        ),
    ],
)
def test_result_has_one_key(result: Result, expected: dict[str, Any]) -> None:
    assert answer(result)["result"] == expected
    assert json.loads(RESULT.validate_python(result).model_dump_json()) == expected


def test_body_is_that_of_the_contract() -> None:
    assert answer(TextResult("a", True), written("a")) == {
        "id": "id-1",
        "model": "florence-2-mini",
        "task": "object_detection",
        "result": {"text": "a"},
        "raw_text": "a",
        "finish_reason": "stop",
        "calibrated": False,
        "familiarity": None,
        "image": {"width": 640, "height": 480},
        "usage": {
            "image_tokens": NUM_IMAGE_TOKENS,
            "prompt_tokens": 5,
            "generated_tokens": 3,
            "constrained_tokens": 2,
        },
        "vision_cache": "joined",
        "timings_ms": {
            "preprocess": 1.0,
            "encode": 3.0,
            "prefill": 5.0,
            "decode": 6.0,
            "postprocess": 0.0,  # rounded to microseconds
            "queue": 6.1,  # encoder and decoder
            "total": 30.1,
        },
    }


def test_usage_is_summed() -> None:
    body = answer(TextResult("", True), written("a"), written("b", "length"), written("c"))
    assert (body["raw_text"], body["finish_reason"]) == ("a\nb\nc", "length")
    sums = {"prompt_tokens": 15, "generated_tokens": 9, "constrained_tokens": 6}
    assert body["usage"] == {"image_tokens": NUM_IMAGE_TOKENS, **sums}
