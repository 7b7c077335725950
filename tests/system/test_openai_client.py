"""OpenAI's own Python package against the running service: sync, async, streaming, errors."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam
from pydantic import BaseModel, SecretStr

from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.system.test_answers import FLORENCE, PALIGEMMA, post_form

ASKED: list[tuple[str, str, dict[str, Any]]] = [
    (FLORENCE, "<OD>", {"task": "object_detection"}),
    (FLORENCE, "<MORE_DETAILED_CAPTION>", {"task": "captioning", "detail": "paragraph"}),
    (
        FLORENCE,
        "<OPEN_VOCABULARY_DETECTION>circle",
        {"task": "open_vocabulary_detection", "labels": ["circle"]},
    ),
    (FLORENCE, "how many shapes are there?", {"task": "visual_question_answering"}),
    (PALIGEMMA, "describe en", {"task": "captioning", "detail": "detailed"}),
    (
        PALIGEMMA,
        "detect circle ; star",
        {"task": "open_vocabulary_detection", "labels": ["circle", "star"]},
    ),
    (PALIGEMMA, "how many shapes are there?", {"task": "visual_question_answering"}),
]


class Detection(BaseModel):
    """An object."""

    box: list[float]
    label: str
    score: float


class Found(BaseModel):
    """The result of a detection."""

    detections: list[Detection]


def messages(text: str, image: bytes | None = None) -> list[ChatCompletionMessageParam]:
    url = f"data:image/png;base64,{base64.b64encode(image or scene_png()).decode()}"
    parts: list[ChatCompletionContentPartParam] = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def openai_client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def raw_text(client: httpx.Client, model: str, text: str, fields: dict[str, Any]) -> str:
    question = {"question": text} if fields["task"] == "visual_question_answering" else {}
    return str(
        post_form(
            client, "/v1/predict", scene_png(), {**fields, **question, "model": model}
        ).json()["raw_text"]
    )


@pytest.mark.parametrize(("model", "text", "fields"), ASKED)
def test_a_completion_is_the_text_of_predict(
    client: httpx.Client,
    openai_client: openai.OpenAI,
    model: str,
    text: str,
    fields: dict[str, Any],
) -> None:
    expected = raw_text(client, model, text, fields)
    whole = openai_client.chat.completions.create(model=model, messages=messages(text))
    assert whole.choices[0].message.content == expected != ""
    assert whole.choices[0].finish_reason == "stop"
    assert whole.model == model
    stream = openai_client.chat.completions.create(
        model=model, messages=messages(text), stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == whole.usage


def test_a_model_of_pydantic_is_filled_from_the_typed_result(
    client: httpx.Client, openai_client: openai.OpenAI
) -> None:
    fields = {"task": "object_detection", "model": FLORENCE}
    expected = post_form(client, "/v1/predict", scene_png(), fields).json()["result"]
    parsed = openai_client.chat.completions.parse(
        model=FLORENCE, messages=messages("<OD>"), response_format=Found
    )
    found = parsed.choices[0].message.parsed
    assert found is not None
    assert found.model_dump() == expected
    with pytest.raises(openai.BadRequestError, match="does not match"):
        openai_client.chat.completions.parse(
            model=FLORENCE, messages=messages("<CAPTION>"), response_format=Found
        )


def test_langchain_asks_follows_up_and_gets_typed_results(
    client: httpx.Client, service: RunningService
) -> None:
    fields = {"task": "object_detection", "model": FLORENCE}
    expected = post_form(client, "/v1/predict", scene_png(), fields).json()
    chat = ChatOpenAI(model=FLORENCE, base_url=f"{service.url}/v1", api_key=SecretStr("none"))
    content = [dict(part) for part in messages("<OD>")[0]["content"]]  # type: ignore[union-attr, arg-type]
    asked = [SystemMessage("Answer briefly."), HumanMessage(content)]  # type: ignore[arg-type]
    typed = chat.with_structured_output(Found, method="json_schema").invoke(asked)
    assert isinstance(typed, Found)
    assert typed.model_dump() == expected["result"]
    answer = chat.invoke(asked)
    assert answer.content == expected["raw_text"]
    followed = chat.invoke([*asked, answer, HumanMessage("<CAPTION>")])
    caption = post_form(
        client, "/v1/predict", scene_png(), {"task": "captioning", "model": FLORENCE}
    )
    assert followed.content == caption.json()["raw_text"]
    assert "".join(str(piece.content) for piece in chat.stream(asked)) == expected["raw_text"]


def test_errors_are_the_package_s_own(openai_client: openai.OpenAI) -> None:
    create = openai_client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-4o", messages=messages("<OD>"))
    assert (unknown.value.code, unknown.value.param) == ("unknown_model", "model")
    with pytest.raises(openai.APIStatusError) as unreadable:
        create(model=PALIGEMMA, messages=messages("ocr", b"no image"))
    assert (unreadable.value.status_code, unreadable.value.code) == (415, "unsupported_image")
    with pytest.raises(openai.BadRequestError) as stream:
        create(model=FLORENCE, messages=messages("<NOTHING>"), stream=True)
    assert stream.value.param == "messages"
