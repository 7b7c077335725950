"""POST /v1/chat/completions over fake runners: tasks of texts, form of answers and errors."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from service.http.boundary import STATUSES
from tasks.parsing import GeneratedText
from tests.support import fake_runners
from tests.support.answers import generated
from tests.support.catalog import RELEASED
from tests.support.fake_runners import FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    NUM_IMAGE_TOKENS,
    PALIGEMMA_ID,
    data_url,
    encoded,
    make_core,
)
from tests.support.rest_client import OCR, client, fits
from tests.support.running_service import parse_events
from wire.runner_channel import RunnerUnreachable
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


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {**body(), "messages": [{"role": "user", "content": list(parts)}]}


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


def conversation(*messages: tuple[str, object], **fields: Any) -> dict[str, Any]:
    listed = [{"role": role, "content": content} for role, content in messages]
    return {**body(**fields), "messages": listed}


@pytest.mark.parametrize(
    ("request_body", "code", "param"),
    [
        ({}, "invalid_request", "model"),
        ({**body(), "temperature": 1e-300}, "invalid_request", "temperature"),
        (message(IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>")), "invalid_request", "messages"),
        (message(text("<OCR>"), text("<OD>"), IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, IMAGE), "invalid_request", "messages"),
        (conversation(("user", [IMAGE]), ("system", "<OCR>")), "invalid_request", "messages"),
        (body("<NOTHING>"), "invalid_request", "messages"),
        (body("<OPEN_VOCABULARY_DETECTION>"), "invalid_request", "labels"),
        (body(model="gpt-4o"), "unknown_model", "model"),
        (body(n=2), "invalid_request", "n"),
        (body(stop=["a"] * 5), "invalid_request", "stop"),
        (body(stop=""), "invalid_request", "stop.0"),
        (body(metadata={str(i): "" for i in range(17)}), "invalid_request", "metadata"),
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
    assert response.json()["error"]["param"] == "messages.0.content.0"
    assert "type must be image_url or text" in response.text
    assert len(response.content) < 1000


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
    assert content_of(body("<CAPTION>", **IGNORED)) == content_of(body("<CAPTION>"))


IGNORED: dict[str, Any] = {
    "n": 1,
    "user": "u",
    "presence_penalty": 1,
    "frequency_penalty": -0.5,
    "logprobs": True,
    "top_logprobs": 3,
    "logit_bias": {"50256": -100},
    "metadata": {"a": "b"},
    "store": False,
}


def test_stop_cuts_the_text_alone_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def truncated(text: str) -> GeneratedText:
        return replace(generated(text), finish_reason="length")

    monkeypatch.setattr(fake_runners, "generated", truncated)
    for stop, content in (
        ("circle", "a red "),
        (["d circle", "red"], "a "),
        (["x"], "a red circle"),
    ):
        assert content_of(body("<CAPTION>", stop=stop)) == content
        chunks = chunks_of(stop=stop)
        pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        assert [piece for piece in pieces if piece] == [content]
        assert chunks[-1]["choices"][0]["finish_reason"] == ("length" if stop == ["x"] else "stop")
    typed = body(DETECT, stop="label", response_format={"type": "json_object"})
    assert json.loads(content_of(typed))["detections"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("Describe this image.", 200),
        ("  please DESCRIBE the\nphoto in detail ", 200),
        ("What’s in this picture?", 200),
        ("Write a caption for this image", 200),
        ("Describe this image as a poem", 422),
        ("What is in this image's corner?", 422),
    ],
)
def test_wish_for_a_caption_is_met_by_a_model_without_questions(words: str, status: int) -> None:
    entry = RELEASED["florence2"]
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core({entry.id: FakeEncoder()}, {entry.id: decoder}, entries=[entry])
    response = client(core).send("POST", PATH, json=body(words, entry.id))
    assert response.status_code == status, response.text
    assert status == 422 or "a red circle" in response.text
    question = " ".join(words.split())
    assert spec_of(body(words), {question: "a poem"}).segments  # of a model with questions


END = "data: [DONE]\n\n"


def chunks_of(**fields: Any) -> list[dict[str, Any]]:
    """Return the chunks of a streamed caption."""
    response = client().send("POST", PATH, json=body("<CAPTION>", stream=True, **fields))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith(END)
    events = parse_events(response.text.removesuffix(END))
    chunks = [chunk for _, chunk in events]
    assert {name for name, _ in events} == {"message"}
    assert {chunk["id"] for chunk in chunks} == {response.headers["x-request-id"]}
    assert {(chunk["model"], chunk["object"]) for chunk in chunks} == {
        (FLORENCE_ID, "chat.completion.chunk")
    }
    assert len({chunk["created"] for chunk in chunks}) == 1
    return chunks


def test_chunks_of_a_stream() -> None:
    *chunks, usage = chunks_of(stream_options={"include_usage": True})
    first, *pieces, last = [chunk["choices"][0] for chunk in chunks]
    assert (first["delta"], first["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
    assert len(pieces) > 1
    assert "".join(piece["delta"]["content"] for piece in pieces) == "a red circle"
    assert {piece["finish_reason"] for piece in pieces} == {None}
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    whole = client().send("POST", PATH, json=body("<CAPTION>")).json()
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert all(chunk["choices"] for chunk in chunks_of())


def test_error_after_the_first_chunk() -> None:
    broken = FakeDecoder(FLORENCE_ANSWERS, broken=RunnerUnreachable("it died"))
    core = make_core(decoders={FLORENCE_ID: broken})
    response = client(core).send("POST", PATH, json=body(stream=True))
    assert "[DONE]" not in response.text
    *chunks, (name, error) = parse_events(response.text)
    assert len(chunks) >= 2
    assert name == "error"
    assert fits(error, "ChatError")
    assert error["error"]["code"] == "not_ready"
    assert error["error"]["type"] == "server_error"


DETECT = "<OPEN_VOCABULARY_DETECTION>red circle"
FIELDS = {"task": "open_vocabulary_detection", "labels": ["red circle"]}
SCHEMA: dict[str, Any] = {
    "properties": {"detections": {"items": {"$ref": "#/$defs/Detection"}}},
    "required": ["detections"],
    "$defs": {"Detection": {"required": ["label", "box", "score"]}},
}
EXPONENTIAL: dict[str, Any] = {
    "$ref": "#/$defs/a0",
    "$defs": {
        **{f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)},
        "a40": {"type": "string"},
    },
}


def with_schema(schema: object) -> dict[str, Any]:
    response_format = {"type": "json_schema", "json_schema": {"name": "found", "schema": schema}}
    return body(DETECT, response_format=response_format)


def refusal(request_body: dict[str, Any]) -> str:
    response = client().send("POST", PATH, json=request_body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("response_format")
    return str(response.json()["error"]["message"])


@pytest.mark.parametrize(
    "request_body", [body(DETECT, response_format={"type": "json_object"}), with_schema(SCHEMA)]
)
def test_content_is_the_result(request_body: dict[str, Any]) -> None:
    predicted = client().predict({**OCR, **FIELDS, "model": request_body["model"]}).json()
    assert json.loads(content_of(request_body)) == predicted["result"]
    assert predicted["result"]["detections"][0]["score"] > 0


def test_streamed_result_is_one_piece() -> None:
    chat = with_schema(SCHEMA)
    response = client().send("POST", PATH, json={**chat, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if "{" in line]
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [piece for piece in pieces if piece] == [content_of(chat)]


def nested(num_levels: int) -> dict[str, Any]:
    return {"not": nested(num_levels - 1)} if num_levels else {}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object", "required": ["boxes"]}, "does not match"),
        ({"type": "thing"}, "is not a JSON Schema: $.type"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "too many alternatives"),
        (EXPONENTIAL, "too many alternatives"),
        ({"$ref": "http://127.0.0.1/schema.json"}, "outside itself"),
        ({"patternProperties": {"(a+)+x": {}}}, "uses patternProperties"),
        ({"properties": {"a": {"enum": ["x" * 20_001]}}}, "20,000 characters"),
        ({"enum": list(range(1_999))}, "2,000 values"),  # beside the list and the schema
        ({"enum": list(range(1_998))}, "does not match"),
        (nested(32), "32 levels"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_unfit_schema_is_refused(schema: dict[str, Any], problem: str) -> None:
    assert problem in refusal(with_schema(schema))


def test_schema_is_checked_before_a_stream() -> None:
    assert "is not a JSON Schema" in refusal({**with_schema({"type": "thing"}), "stream": True})
    assert "with type json_schema" in refusal(body(response_format={"type": "json_schema"}))
