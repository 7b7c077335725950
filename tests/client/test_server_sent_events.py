"""Events of a stream: the same however the bytes are cut, an error raised, an end without an answer told."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import Answer, ConnectionFailed, DeadlineExceeded
from client.rest_messages import answer_json
from client.server_sent_events import EventReader
from tests.support.client_answers import TEXT, answer

TOKENS = ["zwei", " Kreise\n\n", "größer\u2028", "二つ"]
RESULT = f"event: result\ndata: {json.dumps(answer_json(answer(TEXT)), ensure_ascii=False)}\n\n"
STREAM = ("".join(f"event: token\ndata: {json.dumps({'text': text})}\n\n" for text in TOKENS) + RESULT).encode()


@given(st.lists(st.integers(0, len(STREAM))))
def test_chunks_may_end_anywhere(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader("r")
    events: list[str | Answer] = []
    for start, end in pairwise(ends):
        events += reader.read(STREAM[start:end])
    reader.end()
    assert events == [*TOKENS, answer(TEXT)]


def test_an_error_event_is_raised() -> None:
    error = {"error": {"code": "deadline_exceeded", "message": "late", "param": None, "request_id": "theirs"}}
    with pytest.raises(DeadlineExceeded) as caught:
        list(EventReader("r").read(f"event: error\ndata: {json.dumps(error)}\n\n".encode()))
    assert caught.value.request_id == "theirs"


def test_a_stream_that_ends_before_its_answer_was_cut() -> None:
    reader = EventReader("r")
    list(reader.read(STREAM[:-1]))
    with pytest.raises(ConnectionFailed):
        reader.end()
