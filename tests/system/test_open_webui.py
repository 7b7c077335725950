"""The calls that Open WebUI makes, sent by its HTTP client as it sends them.

Source: open-webui 0.12.4 (the release on PyPI), open_webui/routers/openai.py
(`verify_connection`, `generate_chat_completion`), open_webui/utils/middleware.py
(`process_chat_payload`), open_webui/routers/tasks.py (`generate_title`) and open_webui/config.py.
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.system.test_answers import FLORENCE, post_form

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
# Messages written in its page carry its built-in tools, unless the model's settings forbid them.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_timestamp",
            "description": "Get the current Unix timestamp in seconds.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
]
# DEFAULT_TITLE_GENERATION_PROMPT_TEMPLATE, shortened; tags and follow-up questions are asked alike.
TITLE = """### Task:
Generate a concise title summarizing the chat history.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: <OD>
</chat_history>"""


@dataclass(frozen=True, slots=True)
class Answered:
    """Status, type and text of a response."""

    status: int
    content_type: str
    text: str

    def message(self) -> str:
        return str(json.loads(self.text)["error"]["message"])


def call(service: RunningService, path: str, payload: Mapping[str, Any] | None = None) -> Answered:
    async def request() -> Answered:
        async with (
            aiohttp.ClientSession(trust_env=True) as session,
            session.request(
                method="GET" if payload is None else "POST",
                url=f"{service.url}/v1/{path}",
                data=None if payload is None else json.dumps(payload),
                headers=HEADERS,
            ) as response,
        ):
            return Answered(response.status, response.content_type, await response.text())

    return asyncio.run(request())


def chat(*messages: tuple[str, object], **fields: object) -> dict[str, object]:
    written = [{"role": role, "content": content} for role, content in messages]
    return {"stream": True, "model": FLORENCE, "messages": written, **fields}


def asked(text: str) -> tuple[str, object]:
    url = f"data:image/png;base64,{base64.b64encode(scene_png()).decode()}"
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return "user", parts


def text_of(answered: Answered) -> str:
    assert (answered.status, answered.content_type) == (200, "text/event-stream"), answered.text
    *events, done = answered.text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    text = ""
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            text += choice["delta"].get("content", "")
    return text


def test_the_connection_is_verified_by_the_list_of_models(service: RunningService) -> None:
    models = call(service, "models")
    assert models.status == 200
    assert FLORENCE in [model["id"] for model in json.loads(models.text)["data"]]


def test_a_message_of_its_page_and_a_follow_up_are_answered(
    client: httpx.Client, service: RunningService
) -> None:
    expected = [
        post_form(client, "/v1/predict", scene_png(), {"task": task, "model": FLORENCE}).json()
        for task in ("object_detection", "captioning")
    ]
    options = {"stream_options": {"include_usage": True}, "tools": TOOLS, "temperature": 0.0}
    system = ("system", "You are a helpful assistant.")
    first = text_of(call(service, "chat/completions", chat(system, asked("<OD>"), **options)))
    assert first == expected[0]["raw_text"]
    follow_up = chat(system, asked("<OD>"), ("assistant", first), ("user", "<CAPTION>"), **options)
    assert text_of(call(service, "chat/completions", follow_up)) == expected[1]["raw_text"]


def test_a_title_without_an_image_is_refused_in_our_words(service: RunningService) -> None:
    payload = chat(("user", TITLE), stream=False, max_tokens=1000)
    refused = call(service, "chat/completions", payload)
    assert (refused.status, refused.content_type) == (400, "application/json")
    assert refused.message() == "no message of the user has an image_url part; send one"


def test_a_parameter_that_is_not_served_is_named_beside_those_that_are(
    service: RunningService,
) -> None:
    refused = call(service, "chat/completions", chat(asked("<OD>"), stop=["\n"], tools=TOOLS))
    assert refused.status == 400
    assert refused.message().startswith("unknown field 'stop'; the fields are model, messages, ")
