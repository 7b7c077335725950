"""One contract: the same requests over REST, gRPC and the client get equal answers, and
errors that match.

Open Inference has such requests in test_open_inference.py.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import Any

import grpc
import httpx
import pytest

from diptych_client import Client, DiptychError
from diptych_client.transports.messages import to_json
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.system.test_answers import (
    FEW,
    FLORENCE,
    PALIGEMMA,
    REQUESTS,
    VARYING,
    post_form,
    post_json,
    rounded,
)
from tests.system.test_client import client_arguments
from tests.system.test_grpc import result_of_rest, shown

GOOD = scene_png()
OTHER = scene_png(11, (200, 300))
NONE = b"no image"
ERRORS: list[dict[str, Any]] = [
    {"task": "nothing"},
    {"task": "ocr", "model": "gpt"},
    {"task": "ocr", "temperature": 9.0},
    {"task": "ocr", "temperature": 0.5, "num_beams": 2},
    {"task": "ocr", "max_new_tokens": 0},
    {"task": "ocr", "max_new_tokens": 4096},
    {"task": "ocr", "labels": ["a"]},
    {"task": "object_detection", "model": PALIGEMMA},
    {"task": "captioning", "detail": "paragraph", "model": PALIGEMMA},
    {"task": "captioning", "language": "xx"},
    {"task": "open_vocabulary_detection"},
    {"task": "open_vocabulary_detection", "labels": ["a", "A"]},
    {"task": "phrase_grounding", "caption": "a", "phrases": ["a"]},
    {"task": "region_description", "region": [5.0, 5.0, 1.0, 1.0]},
    {"task": "region_description", "region": [0.0, 0.0, 5000.0, 5000.0]},
    {"task": "captioning", "mask_format": "png"},
]
CASES: list[tuple[bytes, dict[str, Any]]] = [
    *product((GOOD,), REQUESTS),
    *product((OTHER,), FEW),
    *((GOOD, fields) for fields in ERRORS),
    (NONE, {"task": "ocr"}),
]
# The parts of an answer that gRPC's messages do not share with JSON in form are compared in the
# form of each.
Outcome = dict[str, Any]


def outcome_of(response: httpx.Response) -> Outcome:
    body = response.json()
    if "error" in body:
        return {name: body["error"][name] for name in ("code", "message", "param")}
    return rounded({name: value for name, value in body.items() if name not in VARYING})  # type: ignore[no-any-return]


def over_rest(post: Callable[..., httpx.Response], service: RunningService) -> list[Outcome]:
    with service.client() as client:
        return [outcome_of(post(client, "/v1/predict", image, fields)) for image, fields in CASES]


def over_grpc(service: RunningService) -> list[Outcome]:
    with grpc.insecure_channel(service.grpc_address) as channel:
        vision = VisionStub(channel)
        return [
            _called(vision, pb.PredictRequest(image=image, **fields)) for image, fields in CASES
        ]


def _called(vision: Any, request: pb.PredictRequest) -> Outcome:
    try:
        answer = vision.Predict(request, timeout=60)
    except grpc.RpcError as error:
        trailing: dict[str, Any] = {datum.key: datum.value for datum in error.trailing_metadata()}
        param = trailing.get("diptych-param")
        return {"code": trailing["diptych-code"], "message": error.details(), "param": param}
    named = {name: getattr(answer, name) for name in ("model", "task", "raw_text", "finish_reason")}
    return rounded({**named, "result": shown(answer)})  # type: ignore[no-any-return]


def over_client(url: str) -> list[Outcome]:
    with Client(url) as client:
        return [_asked(client, image, fields) for image, fields in CASES]


def _asked(client: Client, image: bytes, fields: dict[str, Any]) -> Outcome:
    parameters, options, model = client_arguments(fields)
    try:
        answer = client.predict(image, fields["task"], parameters, model=model, options=options)
    except DiptychError as error:
        return {"code": error.code, "message": error.message, "param": error.param}
    told = json.loads(json.dumps(to_json(answer)))
    return rounded({name: value for name, value in told.items() if name not in VARYING})  # type: ignore[no-any-return]


@cache
def expected(service: RunningService) -> list[Outcome]:
    return over_rest(post_form, service)


def test_the_requests_are_of_every_task_and_both_models_and_errors(service: RunningService) -> None:
    outcomes = expected(service)
    assert len(outcomes) == len(CASES)
    answers = [outcome for outcome in outcomes if "result" in outcome]
    assert {outcome["model"] for outcome in answers} == {FLORENCE, PALIGEMMA}
    assert len({outcome["task"] for outcome in answers}) == 11
    assert len(answers) == len(REQUESTS) + len(FEW)
    codes = {outcome["code"] for outcome in outcomes if "code" in outcome}
    assert codes == {"invalid_request", "unknown_model", "unsupported_task", "unsupported_image"}


def test_json_is_answered_like_a_form(service: RunningService) -> None:
    assert over_rest(post_json, service) == expected(service)


def test_grpc_is_answered_like_rest(service: RunningService) -> None:
    for outcome, wanted in zip(over_grpc(service), expected(service), strict=True):
        if "result" in wanted:
            named = {name: wanted[name] for name in ("model", "task", "raw_text", "finish_reason")}
            wanted = {**named, "result": rounded(result_of_rest(wanted["result"]))}
        assert outcome == wanted


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_client_tells_what_rest_answers(service: RunningService, scheme: str) -> None:
    url = service.url if scheme == "http" else f"grpc://{service.grpc_address}"
    assert over_client(url) == expected(service)


def test_all_at_once_in_mixed_batches_are_answered_like_one_by_one(service: RunningService) -> None:
    with service.client() as client, ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda case: post_form(client, "/v1/predict", *case), CASES))
    assert [outcome_of(response) for response in responses] == expected(service)
