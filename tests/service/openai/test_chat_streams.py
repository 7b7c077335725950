"""`stream: true`: chunks, errors before and after the first one, clients that disconnect."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from tests.service.http.test_boundary import leave, num_gone
from tests.service.openai.test_chat import PATH, body
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, make_core
from tests.support.rest_client import client, fits
from tests.support.server_sent_events import parse_events
from wire.runner_channel import RunnerUnreachable

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
    first, *pieces, last = [chunk["choices"][0] for chunk in chunks_of()]
    assert (first["delta"], first["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
    assert len(pieces) > 1
    assert "".join(piece["delta"]["content"] for piece in pieces) == "a red circle"
    assert {piece["finish_reason"] for piece in pieces} == {None}
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


def test_usage_is_a_last_chunk() -> None:
    *others, last = chunks_of(stream_options={"include_usage": True})
    assert last["choices"] == []
    whole = client().send("POST", PATH, json=body("<CAPTION>")).json()
    assert last["usage"] == whole["usage"]
    assert {chunk["usage"] for chunk in others} == {None}
    assert {chunk["usage"] for chunk in chunks_of()} == {None}


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"model": "gpt-4o"}, "unknown_model"), ({"temperature": 3}, "invalid_request")],
)
def test_error_before_the_first_chunk(fields: dict[str, Any], code: str) -> None:
    response = client().send("POST", PATH, json=body(stream=True) | fields)
    assert response.status_code >= 400
    assert fits(response.json(), "ChatError")
    assert response.json()["error"]["code"] == code


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


@pytest.mark.parametrize("is_streamed", [False, True])
def test_disconnected_client_is_counted(is_streamed: bool) -> None:
    async def ask() -> list[Message]:
        decoder.released = asyncio.Event()
        return await leave(PATH, body(stream=is_streamed), {FLORENCE_ID: decoder})

    decoder = FakeDecoder(FLORENCE_ANSWERS)
    before = num_gone("openai")
    asyncio.run(ask())
    assert decoder.num_cancelled == 1
    assert num_gone("openai") == before + 1
