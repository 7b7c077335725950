"""POST /v1/analyze: JSON and forms, streams, and errors that name the step."""

import json
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    data_url,
    make_core,
)
from tests.support.rest_client import client, error_of, fits
from tests.support.server_sent_events import parse_events

DESCRIBED = FLORENCE_ANSWERS | {
    "What does the region <loc_100><loc_200><loc_500><loc_600> describe?": "a circle"
}
STEPS: list[dict[str, Any]] = [
    {"id": "things", "task": "object_detection"},
    {"id": "what", "task": "region_description", "each": "things"},
    {"id": "all", "task": "ocr", "models": [FLORENCE_ID, PALIGEMMA_ID]},
]


def analyze(steps: object = STEPS, **fields: Any) -> Any:
    body = {"image": data_url(PNG), "steps": steps} | fields
    return api().send("POST", "/v1/analyze", json=body)


def api(max_steps: int = 16, max_step_answers: int = 256) -> Any:
    core = make_core(decoders={FLORENCE_ID: FakeDecoder(DESCRIBED)})
    core.limits = replace(core.limits, max_steps=max_steps, max_step_answers=max_step_answers)
    return client(core)


def test_an_analysis_has_the_answers_of_its_steps() -> None:
    response = analyze()
    document = response.json()
    assert response.status_code == 200
    assert fits(document, "AnalysisJson")
    assert document["image"] == {"width": 640, "height": 480}
    things, what, everything = document["steps"]
    assert (things["id"], things["task"], things["truncated"]) == (
        "things",
        "object_detection",
        False,
    )
    assert "of" not in things["answers"][0]
    (answer,) = what["answers"]
    assert (answer["of"], answer["result"], answer["id"]) == (
        0,
        {"text": "a circle"},
        document["id"],
    )
    assert [each["model"] for each in everything["answers"]] == [FLORENCE_ID, PALIGEMMA_ID]


def test_a_form_has_the_same_answer() -> None:
    form = {"steps": json.dumps(STEPS)}
    response = api().send("POST", "/v1/analyze", data=form, files={"image": PNG})
    assert texts_of(response.json()) == texts_of(analyze().json())


def texts_of(document: Any) -> list[str]:
    answers = chain.from_iterable(step["answers"] for step in document["steps"])
    return [answer["raw_text"] for answer in answers]


def test_a_stream_has_each_answer_and_then_the_analysis() -> None:
    response = analyze(stream=True)
    events = parse_events(response.text)
    names = [name for name, _ in events]
    assert names == ["answer"] * 4 + ["result"]
    assert fits(events[-1][1], "AnalysisJson")
    streamed = {each["step"] for _, each in events[:-1]}
    assert streamed == {"things", "what", "all"}


@pytest.mark.parametrize(
    ("steps", "code", "param"),
    [
        ([{"id": "a", "task": "ocr", "each": "b"}], "invalid_request", "steps[0].each"),
        ([{"id": "a", "task": "nothing"}], "invalid_request", "steps[0].task"),
        ([{"id": "a", "task": "ocr", "model": "gpt"}], "unknown_model", "steps[0].model"),
        ([], "invalid_request", "steps"),
        ("steps", "invalid_request", "steps"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_step_is_an_error_response(
    steps: object, code: str, param: str, stream: bool
) -> None:
    error = error_of(analyze(steps, stream=stream))
    assert (error["code"], error["param"]) == (code, param)


def test_settings_limit_steps_and_answers() -> None:
    limited = api(max_steps=2, max_step_answers=1)
    body = {"image": data_url(PNG), "steps": STEPS}
    assert error_of(limited.send("POST", "/v1/analyze", json=body))["param"] == "steps"
    body["steps"] = STEPS[:2]
    things, what = limited.send("POST", "/v1/analyze", json=body).json()["steps"]
    assert (len(things["answers"]), what["answers"], what["truncated"]) == (1, [], True)


def test_several_images_are_answered_in_order() -> None:
    images = [data_url(PNG), "bm9uZQ==", data_url(PNG)]
    document = api().send("POST", "/v1/analyze", json={"images": images, "steps": STEPS}).json()
    assert fits(document, "SeveralJson")
    first, broken, last = document["answers"]
    assert broken["error"]["code"] == "unsupported_image"
    assert [step["id"] for step in first["steps"]] == [step["id"] for step in last["steps"]]
    error = error_of(
        api().send("POST", "/v1/analyze", json={"images": images, "steps": STEPS, "stream": True})
    )
    assert error["param"] == "stream"
