"""One contract: the same requests over REST, gRPC and the client, whole or streamed, alone or at
once, get equal answers, and errors that match.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields as fields_of
from functools import cache
from typing import Any

import httpx
import pytest

from diptych_client import Answer, AnswerOptions, Client, DiptychError, TaskParameters
from diptych_client.json_values import to_json
from service.schema.rendering import AnswerJson
from tests.support.running_service import RunningService, post_form
from tests.support.scene_images import scene_png

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
VARYING = {"id", "timings_ms", "vision_cache"}
BROKEN_TOKEN = re.compile(r"<[a-z]+_?\d*$|^_?\d+>")
CALIBRATED = "open_vocabulary_detection"
SQUARE = {"task": "instance_segmentation", "phrase": "purple square"}
REQUESTS: list[dict[str, Any]] = [
    {"task": "captioning"},
    {"task": "captioning", "detail": "detailed", "model": FLORENCE},
    {"task": "captioning", "model": PALIGEMMA, "language": "de"},
    {"task": "object_detection"},
    {"task": "open_vocabulary_detection", "labels": ["circle", "red star", "square"]},
    {"task": "open_vocabulary_detection", "labels": ["circle", "square"], "model": PALIGEMMA},
    {"task": "phrase_grounding", "caption": "a red circle and a blue square"},
    {"task": "phrase_grounding", "phrases": ["a red star", "a purple circle"], "model": PALIGEMMA},
    {"task": "region_proposal"},
    {"task": "dense_region_captioning"},
    SQUARE,
    SQUARE | {"model": PALIGEMMA},
    {"task": "instance_segmentation", "region": [50.0, 100.0, 140.5, 180.0], "mask_format": "rle"},
    SQUARE | {"model": PALIGEMMA, "mask_format": "rle"},
    {"task": "ocr"},
    {"task": "ocr", "model": PALIGEMMA},
    {"task": "ocr_with_regions"},
    {"task": "region_description", "region": [50, 100, 140, 180], "detail": "category"},
    {"task": "visual_question_answering", "question": "how many shapes are there?"},
    {"task": "captioning", "temperature": 0.7, "top_p": 0.9, "seed": 5, "max_new_tokens": 20},
    {"task": "object_detection", "num_beams": 3},
    SQUARE | {"model": PALIGEMMA, "num_beams": 2},
    {"task": "dense_region_captioning", "constrained": False},
]
FEW = [REQUESTS[index] for index in (1, 5, 12, 11, 16, 20)]  # each kind of result, both models
ERRORS: list[dict[str, Any]] = [
    {"task": "nothing"},
    {"task": "ocr", "model": "gpt"},
    {"task": "ocr", "max_new_tokens": 4096},
    {"task": "ocr", "labels": ["a"]},
    {"task": "object_detection", "model": PALIGEMMA},
    {"task": "open_vocabulary_detection"},
    {"task": "region_description", "region": [0.0, 0.0, 5000.0, 5000.0]},
]
SCENE = scene_png()
CASES: list[tuple[bytes, dict[str, Any]]] = [
    *((SCENE, request) for request in REQUESTS),
    *((scene_png(11, (200, 300)), request) for request in FEW),
    *((SCENE, request) for request in ERRORS),
    (b"no image", {"task": "ocr"}),
]


def rounded(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 3))


def without_varying(answer: dict[str, Any]) -> Any:
    return rounded({name: value for name, value in answer.items() if name not in VARYING})


def outcome_of(response: httpx.Response) -> Any:
    body = response.json()
    if response.is_success:
        AnswerJson.model_validate(body)
        return without_varying(body)
    return {name: body["error"][name] for name in ("code", "message", "param")}


@cache
def expected(service: RunningService) -> list[Any]:
    with service.client() as client:
        return [outcome_of(post_form(client, "/v1/predict", *case)) for case in CASES]


def arguments_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request as arguments of the client."""

    def fields(kind: type[TaskParameters | AnswerOptions]) -> Any:
        names = request.keys() & {field.name for field in fields_of(kind)}
        return kind(**{name: request[name] for name in names})

    parts = {"parameters": fields(TaskParameters), "options": fields(AnswerOptions)}
    return parts | {"task": request["task"], "model": request.get("model")}


def test_requests_are_of_every_kind(service: RunningService) -> None:
    outcomes = expected(service)
    answers = [outcome for outcome in outcomes if "result" in outcome]
    assert {answer["model"] for answer in answers} == {FLORENCE, PALIGEMMA}
    assert len({answer["task"] for answer in answers}) == 11
    assert len(answers) == len(REQUESTS) + len(FEW)
    codes = {outcome["code"] for outcome in outcomes if "code" in outcome}
    assert codes == {"invalid_request", "unknown_model", "unsupported_task", "unsupported_image"}


def test_mixed_batches_are_answered_like_single_requests(service: RunningService) -> None:
    with service.client() as client, ThreadPoolExecutor(16) as pool:
        responses = pool.map(lambda case: post_form(client, "/v1/predict", *case), CASES)
        assert list(map(outcome_of, responses)) == expected(service)


def test_client_has_the_answers_of_rest(service: RunningService, url: str) -> None:
    with Client(url) as client:
        for (image, fields), outcome in zip(CASES, expected(service), strict=True):
            try:
                answer = client.predict(image, **arguments_of(fields))
            except DiptychError as error:
                names = {"code": error.code, "message": error.message, "param": error.param}
                assert names == outcome
            else:
                assert without_varying(to_json(answer)) == outcome


def test_a_stream_is_the_whole_answer(url: str) -> None:
    with Client(url) as client:
        for request in FEW:
            whole = client.predict(SCENE, **arguments_of(request))
            *pieces, answer = client.stream(SCENE, **arguments_of(request))
            texts = [str(piece) for piece in pieces]
            assert "".join(texts) == whole.raw_text
            assert not [text for text in texts if BROKEN_TOKEN.search(text)]
            assert isinstance(answer, Answer)
            assert without_varying(to_json(answer)) == without_varying(to_json(whole))
        with pytest.raises(DiptychError, match=f"{PALIGEMMA} does not offer"):
            list(client.stream(SCENE, "object_detection", model=PALIGEMMA))


def test_text_is_sent_as_it_is_decoded(service: RunningService) -> None:
    with service.chunks(task="captioning", detail="detailed", num_beams=1) as chunks:
        assert len(list(filter(None, chunks))) > 5


def test_embedded_models_are_calibrated(url: str) -> None:
    labels = TaskParameters(labels=["circle", "star"])
    with Client(url) as client:
        for options in (AnswerOptions(), AnswerOptions(tiles=4), AnswerOptions(temperature=0.5)):
            comparison = client.compare(SCENE, CALIBRATED, labels, options=options)
            for answer in comparison.answers:
                assert isinstance(answer, Answer)
                assert answer.calibrated == (options.temperature is None)
        for model in client.models():
            assert CALIBRATED in model.calibrated_tasks
        assert not client.predict(SCENE, "captioning").calibrated
