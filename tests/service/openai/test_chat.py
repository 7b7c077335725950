"""POST /v1/chat/completions over fake runners: tasks of texts, form of answers and errors."""

from typing import Any

import pytest

from service.http.boundary import STATUSES
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, NUM_IMAGE_TOKENS, PALIGEMMA_ID
from tests.support.rest_client import OCR, client, fits

PATH = "/v1/chat/completions"


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


IMAGE = image(OCR["image"])


def body(value: str = "<OCR>", model: str = FLORENCE_ID, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": [text(value), IMAGE]}],
        **fields,
    }


def message(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {**body(), "messages": [{"role": role, "content": list(parts)}]}


@pytest.mark.parametrize(
    ("model", "asked", "written"),
    [
        (FLORENCE_ID, "<OCR>", "HELLO"),
        (FLORENCE_ID, "<CAPTION>", "a red circle"),
        (
            FLORENCE_ID,
            "<OPEN_VOCABULARY_DETECTION>red circle",
            FLORENCE_ANSWERS["Locate red circle in the image."],
        ),
        (FLORENCE_ID, "what is it?", "a circle"),
        (PALIGEMMA_ID, "ocr", "HELLO"),
        (PALIGEMMA_ID, "detect red circle", "<loc0200><loc0100><loc0600><loc0500> red circle"),
        (PALIGEMMA_ID, "what is it?", "circle"),
    ],
)
def test_text_selects_the_task_and_the_completion_is_the_raw_text(
    model: str, asked: str, written: str
) -> None:
    response = client().send("POST", PATH, json=body(asked, model))
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
        ({**body(), "temperature": 3}, "invalid_request", "temperature"),
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
        (message(text("<OCR>"), IMAGE, IMAGE), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, role="system"), "invalid_request", "messages"),
        (message(text("<OCR>"), IMAGE, role="tool"), "invalid_request", "messages.0.role"),
        (message({"type": "input_audio"}), "invalid_request", "messages.0.content.0"),
        (body("<NOTHING>"), "invalid_request", "messages"),
        (body("<OPEN_VOCABULARY_DETECTION>"), "invalid_request", "labels"),
        (body(model="gpt-4o"), "unknown_model", "model"),
        (
            message(text("<OCR>"), image("https://a/b")),
            "invalid_request",
            "image",
        ),
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


def test_a_part_of_unknown_type_is_refused_without_its_repetition() -> None:
    response = client().send("POST", PATH, json=message({"type": "x" * 40_000}))
    assert response.status_code == 400
    assert "type must be image_url or text" in response.text
    assert len(response.content) < 1000


def conversation(*messages: tuple[str, object], **fields: Any) -> dict[str, Any]:
    told = [{"role": role, "content": content} for role, content in messages]
    return {**body(**fields), "messages": told}


def content_of(request_body: dict[str, Any]) -> str:
    response = client().send("POST", PATH, json=request_body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_the_last_message_asks_about_the_latest_image() -> None:
    asked = conversation(
        ("system", "You are a careful assistant."),
        ("user", [text("<OCR>"), IMAGE]),
        ("assistant", "HELLO"),
        ("user", "<CAPTION>"),
    )
    assert content_of(asked) == "a red circle"


def test_a_conversation_has_at_most_64_messages() -> None:
    asked = ("user", [text("<OCR>"), IMAGE])
    assert content_of(conversation(*[asked] * 64)) == "HELLO"
    assert client().send("POST", PATH, json=conversation(*[asked] * 65)).status_code == 400


def test_a_conversation_that_ends_with_the_assistant_is_refused() -> None:
    asked = conversation(("user", [text("<OCR>"), IMAGE]), ("assistant", "HELLO"))
    error = client().send("POST", PATH, json=asked).json()["error"]
    assert error["message"] == "the last message is of assistant; it must be of user"
