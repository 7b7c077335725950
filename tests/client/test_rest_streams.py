"""Server-sent events of a stream: however the bytes are cut, and streams that fail."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from diptych_client import Client, ConnectionFailed, DeadlineExceeded, InternalError
from diptych_client.transports.messages import event_from_sse, to_json
from tests.support.both_clients import KINDS, call
from tests.support.client_answers import TEXT, answer
from tests.support.scripted_services import scripted

TOKENS = ["zwei", " Kreise\n\n", "größer\u2028", "二つ"]
RESULT = f"event: result\ndata: {json.dumps(to_json(answer(TEXT)), ensure_ascii=False)}\n\n"


def tokens(*texts: str) -> str:
    return "".join(
        f"event: token\ndata: {json.dumps({'text': text}, ensure_ascii=False)}\n\n"
        for text in texts
    )


STREAM = (tokens(*TOKENS) + RESULT).encode()
ERROR = {
    "error": {"code": "deadline_exceeded", "message": "late", "param": None, "request_id": "theirs"}
}


def stream(client: Any) -> Any:
    return client.stream(b"image", "ocr")


@given(st.lists(st.integers(0, len(STREAM))))
def test_chunks_may_end_anywhere(cuts: list[int]) -> None:
    def chunks() -> Iterator[bytes]:
        for start, end in pairwise([0, *sorted(cuts), len(STREAM)]):
            yield STREAM[start:end]

    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=chunks())
    assert [event_from_sse(each) for each in EventSource(response).iter_sse()] == [
        *TOKENS,
        answer(TEXT),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_comments_of_a_proxy_are_ignored(kind: str) -> None:
    with scripted("rest", [b": keep-alive\n\n" + STREAM.replace(b"\n", b"\r\n")]) as (url, _):
        assert call(kind, url, stream) == [*TOKENS, answer(TEXT)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_asks_for_the_stream(kind: str) -> None:
    with scripted("rest", [STREAM]) as (url, script):
        call(kind, url, stream)
    assert b'name="stream"\r\n\r\ntrue' in script.received[0].body


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_event_is_raised(kind: str) -> None:
    events = tokens("one") + f"event: error\ndata: {json.dumps(ERROR)}\n\n"
    with scripted("rest", [events.encode()]) as (url, _), pytest.raises(DeadlineExceeded) as caught:
        call(kind, url, stream)
    assert (caught.value.message, caught.value.request_id) == ("late", "theirs")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_ends_before_its_answer_is_a_failed_connection(kind: str) -> None:
    with scripted("rest", [STREAM[:-1]]) as (url, script):
        with pytest.raises(ConnectionFailed, match="ended before the answer"):
            call(kind, url, stream)
        assert len(script.received) == 1  # text was yielded: a second attempt would repeat it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("events", [b"", tokens("one").encode()[:-1]])
def test_a_stream_that_ends_before_its_first_piece_is_retried(kind: str, events: bytes) -> None:
    with scripted("rest", [events, STREAM]) as (url, script):
        assert call(kind, url, stream) == [*TOKENS, answer(TEXT)]
        assert len(script.received) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "events", [b"event: token\ndata: {no json\n\n", b"event: other\ndata: {}\n\n"]
)
def test_an_event_that_cannot_be_parsed_is_an_internal_error(kind: str, events: bytes) -> None:
    with (
        scripted("rest", [events]) as (url, _),
        pytest.raises(InternalError, match="cannot parse the response"),
    ):
        call(kind, url, stream)


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b"[]", b'{"id": "x"}'], ids=["deep", "list", "incomplete"]
)
def test_a_response_of_another_form_is_an_error_of_the_service(body: bytes) -> None:
    message = "cannot parse the response to Predict"
    with (
        scripted("rest", [body]) as (url, _),
        Client(url) as client,
        pytest.raises(InternalError, match=message),
    ):
        client.predict(b"", "ocr")
