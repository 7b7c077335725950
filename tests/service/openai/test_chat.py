"""POST /v1/chat/completions over fake runners: tasks of texts, form of answers and errors."""

from collections.abc import Mapping
from typing import Any

import pytest
from PIL import Image

from service.http.boundary import STATUSES
from service.inference.request_fields import GenerationFields
from service.openai.wire import ChatRequest
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    NUM_IMAGE_TOKENS,
    PALIGEMMA_ID,
    PNG,
    data_url,
    encoded,
    make_core,
)
from tests.support.rest_client import OCR, client, fits
from wire.runner_messages import SequenceSpec

PATH = "/v1/chat/completions"


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


IMAGE = image(OCR["image"])
RED_CIRCLE = FLORENCE_ANSWERS["Locate red circle in the image."]


def body(value: str = "<OCR>", model: str = FLORENCE_ID, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [text(value), IMAGE]}]
    return {"model": model, "messages": messages, **fields}


def message(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {**body(), "messages": [{"role": role, "content": list(parts)}]}


@pytest.mark.parametrize(
    ("model", "prompt", "written"),
    [
        (FLORENCE_ID, "<CAPTION>", "a red circle"),
        (FLORENCE_ID, "<OPEN_VOCABULARY_DETECTION>red circle", RED_CIRCLE),
        (FLORENCE_ID, "what is it?", "a circle"),
        (PALIGEMMA_ID, "detect red circle", "<loc0200><loc0100><loc0600><loc0500> red circle"),
        (PALIGEMMA_ID, "what is it?", "circle"),
    ],
)
def test_text_selects_the_task(model: str, prompt: str, written: str) -> None:
    response = client().send("POST", PATH, json=body(prompt, model))
    completion = response.json()
    assert response.status_code == 200, completion
    assert fits(completion, "ChatCompletion")
    assert completion["choices"][0]["message"]["content"] == written
    assert completion["id"] == response.headers["x-request-id"]
    usage = completion["usage"]
    assert usage["prompt_tokens"] > NUM_IMAGE_TOKENS
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("request_body", "code", "param"),
    [
        ({}, "invalid_request", "model"),
        ({**body(), "n": 2}, "invalid_request", "n"),
        ({**body(), "tools": [{}] * 129}, "invalid_request", "tools"),
        ({**body(), "tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({**body(), "temperature": 1e-300}, "invalid_request", "temperature"),
        ({**body(), "max_tokens": 0}, "invalid_request", "max_tokens"),
        ({**body(), "seed": 2**63}, "invalid_request", "seed"),
        (body("detect " + "a ; " * 2500), "invalid_request", "messages.0.content.0.text.text"),
        (message(*[text("<OCR>")] * 17), "invalid_request", "messages.0.content"),
        (body(model="x" * 1001), "invalid_request", "model"),
        ({**body(), "user": "x" * 1001}, "invalid_request", "user"),
        (message(IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>")), "invalid_request", "messages"),
        (message(text("<OCR>"), text("<OD>"), IMAGE), "invalid_request", "messages"),
        (message(text("<GENERATE_TAGS>"), IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, role="system"), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, role="tool"), "invalid_request", "messages.0.role"),
        (message({"type": "input_audio"}), "invalid_request", "messages.0.content.0"),
        (body("<NOTHING>"), "invalid_request", "messages"),
        (body("<OPEN_VOCABULARY_DETECTION>"), "invalid_request", "labels"),
        (body(model="gpt-4o"), "unknown_model", "model"),
        (message(text("<OCR>"), image("https://a/b")), "invalid_request", "image"),
        (message(text("<OCR>"), image("data:,x")), "invalid_request", "image"),
    ],
)
def test_error_has_the_form_of_openai(request_body: dict[str, Any], code: str, param: str) -> None:
    response = client().send("POST", PATH, json=request_body)
    document = response.json()
    assert fits(document, "ChatError")
    assert (document["error"]["code"], document["error"]["param"]) == (code, param)
    assert response.status_code == {str(name): status for name, status in STATUSES.items()}[code]
    assert document["error"]["type"] == "invalid_request_error"


def test_unknown_part_is_not_repeated() -> None:
    response = client().send("POST", PATH, json=message({"type": "x" * 40_000}))
    assert response.status_code == 400
    assert "type must be image_url or text" in response.text
    assert len(response.content) < 1000


def conversation(*messages: tuple[str, object], **fields: Any) -> dict[str, Any]:
    listed = [{"role": role, "content": content} for role, content in messages]
    return {**body(**fields), "messages": listed}


def content_of(request_body: dict[str, Any]) -> str:
    response = client().send("POST", PATH, json=request_body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_last_message_asks_about_latest_image() -> None:
    asked_before = ("user", [text("<OCR>"), IMAGE])
    chat = (("system", "Be careful."), asked_before, ("assistant", "HELLO"), ("user", "<CAPTION>"))
    assert content_of(conversation(*chat)) == "a red circle"


def test_latest_of_two_images_is_sent() -> None:
    def features(*messages: tuple[str, object]) -> list[float]:
        decoder = FakeDecoder(FLORENCE_ANSWERS)
        api = client(make_core(decoders={FLORENCE_ID: decoder}))
        assert api.send("POST", PATH, json=conversation(*messages)).status_code == 200
        return [float(value) for value in decoder.image_features[0].ravel()]

    def about(color: str) -> tuple[str, object]:
        picture = image(data_url(encoded(Image.new("RGB", (8, 8), color))))
        return "user", [text("<OCR>"), picture]

    of_blue = features(about("blue"))
    assert features(about("red"), about("blue"), ("user", "<OCR>")) == of_blue
    assert features(about("red")) != of_blue


def test_number_of_messages_is_limited() -> None:
    chat = ("user", [text("<OCR>"), IMAGE])
    assert content_of(conversation(*[chat] * 64)) == "HELLO"
    assert client().send("POST", PATH, json=conversation(*[chat] * 65)).status_code == 400


def test_assistant_has_not_the_last_message() -> None:
    chat = conversation(("user", [text("<OCR>"), IMAGE]), ("assistant", "HELLO"))
    error = client().send("POST", PATH, json=chat).json()["error"]
    assert error["message"] == "the last message is of assistant; it must be of user"


def spec_of(request: Mapping[str, Any], answers: Mapping[str, str] | None = None) -> SequenceSpec:
    """Return the one sequence that the decoder of Florence-2 gets for a message."""
    decoder = FakeDecoder(answers or FLORENCE_ANSWERS)
    response = client(make_core(decoders={FLORENCE_ID: decoder})).send("POST", PATH, json=request)
    assert response.status_code == 200, response.text
    (spec,) = decoder.specs
    return spec


def test_options_reach_the_decoder() -> None:
    spec = spec_of(body())
    assert (spec.temperature, spec.top_p, spec.seed, spec.max_new_tokens) == (0, 1, None, None)
    spec = spec_of(body(temperature=0.5, top_p=0.9, seed=2**63 - 1, max_tokens=4))
    options = (spec.temperature, spec.top_p, spec.seed, spec.max_new_tokens)
    assert options == (0.5, 0.9, 2**63 - 1, 4)
    assert spec_of(body(max_tokens=4, max_completion_tokens=5)).max_new_tokens == 5


def test_bounds_are_those_of_predict() -> None:
    texts = {"title", "description", "default"}
    for name in ("temperature", "top_p", "seed"):
        chat, predict = (
            model.model_json_schema()["properties"][name]
            for model in (ChatRequest, GenerationFields)
        )
        bounds = chat.keys() - texts
        assert bounds, name
        assert {key: chat[key] for key in bounds} == {key: predict[key] for key in bounds}, name


def test_region_is_of_width_and_height() -> None:
    region = "<loc_100><loc_250><loc_900><loc_750>"
    chat = [text(f"<REGION_TO_CATEGORY>{region}"), image(data_url(PNG))]
    prompt = f"What is the region {region}?"
    spec = spec_of(body() | {"messages": [{"role": "user", "content": chat}]}, {prompt: "a circle"})
    assert "".join(segment for segment, _ in spec.segments) == prompt
