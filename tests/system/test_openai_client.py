"""OpenAI's own Python package, and LangChain over it, against the running service."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.support.fake_service import data_url
from tests.support.running_service import RunningService, default_scene
from tests.system.test_answers import FLORENCE, PALIGEMMA

COUNT = "how many shapes are there?"
DETECTION: dict[str, Any] = {"task": "object_detection", "model": FLORENCE}
FIND = "open_vocabulary_detection"
# The text of a message, and the request that it stands for.
TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("<OD>", DETECTION),
    ("<MORE_DETAILED_CAPTION>", {"task": "captioning", "detail": "paragraph", "model": FLORENCE}),
    (
        "<OPEN_VOCABULARY_DETECTION>circle",
        {"task": FIND, "labels": ["circle"], "model": FLORENCE},
    ),
    (COUNT, {"task": "visual_question_answering", "question": COUNT, "model": FLORENCE}),
    ("describe en", {"task": "captioning", "detail": "detailed", "model": PALIGEMMA}),
    ("detect circle ; star", {"task": FIND, "labels": ["circle", "star"], "model": PALIGEMMA}),
    (COUNT, {"task": "visual_question_answering", "question": COUNT, "model": PALIGEMMA}),
]


class Detection(BaseModel):
    """An object."""

    box: list[float]
    label: str
    score: float


class Detections(BaseModel):
    """The result of a detection."""

    detections: list[Detection]


def content(text: str, image: bytes | None = None) -> list[Any]:
    url = data_url(image or default_scene())
    return [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]


def messages(text: str, image: bytes | None = None) -> list[Any]:
    return [{"role": "user", "content": content(text, image)}]


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("text", "fields"), TEXTS)
def test_completion_is_the_text_of_predict(
    service: RunningService, client: openai.OpenAI, text: str, fields: dict[str, Any]
) -> None:
    expected = service.predict(**fields).json()["raw_text"]
    create = client.chat.completions.create
    whole = create(model=fields["model"], messages=messages(text))
    assert whole.choices[0].message.content == expected != ""
    assert (whole.choices[0].finish_reason, whole.model) == ("stop", fields["model"])
    *chunks, last = create(
        model=fields["model"],
        messages=messages(text),
        stream=True,
        stream_options={"include_usage": True},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == whole.usage


def test_typed_result_fills_a_pydantic_model(
    service: RunningService, client: openai.OpenAI
) -> None:
    def parse(text: str) -> Any:
        return client.chat.completions.parse(
            model=FLORENCE, messages=messages(text), response_format=Detections
        )

    parsed = parse("<OD>").choices[0].message.parsed
    assert parsed.model_dump() == service.predict(**DETECTION).json()["result"]
    with pytest.raises(openai.BadRequestError, match="does not match"):
        parse("<CAPTION>")


def test_langchain_follows_up_and_gets_typed_results(service: RunningService) -> None:
    expected = service.predict(**DETECTION).json()
    chat = ChatOpenAI(model=FLORENCE, base_url=f"{service.url}/v1", api_key=SecretStr("none"))
    conversation = [SystemMessage("Answer briefly."), HumanMessage(content("<OD>"))]
    typed: Any = chat.with_structured_output(Detections, method="json_schema").invoke(conversation)
    assert typed.model_dump() == expected["result"]
    answer = chat.invoke(conversation)
    assert answer.content == expected["raw_text"]
    caption = chat.invoke([*conversation, answer, HumanMessage("<CAPTION>")]).content
    assert caption == service.predict(task="captioning", model=FLORENCE).json()["raw_text"]
    pieces = [str(piece.content) for piece in chat.stream(conversation)]
    assert "".join(pieces) == expected["raw_text"]


def test_errors_are_those_of_the_package(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as unknown:
        create(model="gpt-4o", messages=messages("<OD>"))
    assert (unknown.value.code, unknown.value.param) == ("unknown_model", "model")
    with pytest.raises(openai.APIStatusError) as unreadable:
        create(model=PALIGEMMA, messages=messages("ocr", b"no image"))
    assert (unreadable.value.status_code, unreadable.value.code) == (415, "unsupported_image")
    with pytest.raises(openai.BadRequestError) as stream:
        create(model=FLORENCE, messages=messages("<OPEN_VOCABULARY_DETECTION>"), stream=True)
    assert stream.value.param == "labels"
