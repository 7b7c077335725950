"""OpenAI's own Python package against the running service."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.fake_service import data_url
from tests.support.running_service import RunningService, default_scene
from tests.system.test_answers import FLORENCE, PALIGEMMA

COUNT = "how many shapes are there?"
DETECTION: dict[str, Any] = {"task": "object_detection", "model": FLORENCE}
FIND = "open_vocabulary_detection"
# The text of a message, and the request that it stands for.
TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("<OD>", DETECTION),
    ("<OPEN_VOCABULARY_DETECTION>circle", {"task": FIND, "labels": ["circle"], "model": FLORENCE}),
    ("describe en", {"task": "captioning", "detail": "detailed", "model": PALIGEMMA}),
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


def messages(text: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": data_url(default_scene())}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, image]}]


@pytest.fixture
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("text", "fields"), TEXTS)
def test_completion_is_the_text_of_predict(
    service: RunningService, client: openai.OpenAI, text: str, fields: dict[str, Any]
) -> None:
    expected = service.predict(**fields).json()["raw_text"]
    message: Any = {"model": fields["model"], "messages": messages(text)}
    whole = client.chat.completions.create(**message)
    assert whole.choices[0].message.content == expected != ""
    assert (whole.choices[0].finish_reason, whole.model) == ("stop", fields["model"])
    *chunks, last = client.chat.completions.create(
        **message, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == whole.usage


def test_typed_result_fills_a_pydantic_model(
    service: RunningService, client: openai.OpenAI
) -> None:
    parse = client.chat.completions.parse
    typed = parse(model=FLORENCE, messages=messages("<OD>"), response_format=Detections)
    parsed: Any = typed.choices[0].message.parsed
    assert parsed.model_dump() == service.predict(**DETECTION).json()["result"]
    with pytest.raises(openai.BadRequestError, match="does not match"):
        parse(model=FLORENCE, messages=messages("<CAPTION>"), response_format=Detections)
