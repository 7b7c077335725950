"""`stream: true` over fake runners: events, errors, and clients that disconnect."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from tests.service.inference.test_tiled_answers import picture
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, data_url, make_core
from tests.support.rest_client import OCR, SETTINGS, client, error_of, fits
from tests.support.server_sent_events import parse_events
from wire.runner_channel import RunnerUnreachable
from wire.runner_messages import Failed

STREAMED = {**OCR, "stream": True}


def florence(**values: Any) -> FakeDecoder:
    return FakeDecoder(FLORENCE_ANSWERS, **values)


def count(status: str) -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "diptych_requests_total" and sample.labels["status"] == status
    )


@pytest.mark.parametrize("task", ["ocr", "object_detection"])
def test_stream_has_pieces_of_text_and_then_the_answer(task: str) -> None:
    fields = {**STREAMED, "task": task}
    response = client().predict(fields)
    *tokens, (name, answer) = parse_events(response.text)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == answer["id"]
    assert {each for each, _ in tokens} == {"token"}
    assert "".join(data["text"] for _, data in tokens) == answer["raw_text"]
    assert name == "result"
    assert fits(answer, "AnswerJson")
    whole = client().predict({**fields, "stream": False}).json()
    assert answer["result"] == whole["result"]


def test_a_piece_about_a_view_has_its_objects() -> None:
    fields = STREAMED | {"task": "object_detection", "tiles": "1x2", "image": data_url(picture())}
    *tokens, _ = parse_events(client().predict(fields).text)
    assert {name for name, _ in tokens} == {"token"}
    whole, _, right = [data for _, data in tokens]
    assert (whole["view"], right["view"]) == ([0, 0, 800, 400], [356, 0, 800, 400])
    (found,) = right["result"]["detections"]
    assert found["box"][0] > right["view"][0]


def test_form_can_request_a_stream() -> None:
    form = {
        name: (None, str(value).lower() if value is True else value)
        for name, value in STREAMED.items()
    }
    assert parse_events(client().send("POST", "/v1/predict", files=form).text)[-1][0] == "result"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"stream": "yes"}, "invalid_request"),
        ({"stream": True, "temperature": 9}, "invalid_request"),
        ({"stream": True, "model": "gpt"}, "unknown_model"),
        ({"stream": True, "image": "bm8gaW1hZ2U="}, "unsupported_image"),
    ],
)
def test_error_before_the_first_event_has_its_status(fields: dict[str, Any], code: str) -> None:
    assert error_of(client().predict({**OCR, **fields}))["code"] == code


def test_comparison_cannot_be_streamed() -> None:
    assert error_of(client().compare(STREAMED))["param"] == "stream"


def test_error_after_the_first_event_is_an_event() -> None:
    broken = florence(broken=RunnerUnreachable("the decoder died"))
    response = client(make_core(decoders={FLORENCE_ID: broken})).predict(STREAMED)
    (first, _), (name, body) = parse_events(response.text)
    assert (first, name) == ("token", "error")
    assert fits(body, "ErrorJson")
    assert body["error"]["code"] == "not_ready"
    assert body["error"]["request_id"] == response.headers["x-request-id"]


def test_stream_resumes_after_the_sent_text_when_the_decoder_dies() -> None:
    whole = parse_events(client().predict(STREAMED).text)
    broken = florence(broken=RunnerUnreachable("the decoder died"), num_broken=1)
    again = parse_events(client(make_core(decoders={FLORENCE_ID: broken})).predict(STREAMED).text)
    assert [data for _, data in again[:-1]] == [data for _, data in whole[:-1]]
    assert again[-1][1]["result"] == whole[-1][1]["result"]
    assert len(broken.specs) == 2


def test_call_is_repeated_when_the_decoder_dies_before_any_text() -> None:
    decoder = florence(failure=RunnerUnreachable())
    assert (
        error_of(client(make_core(decoders={FLORENCE_ID: decoder})).predict(STREAMED))["code"]
        == "not_ready"
    )
    assert len(decoder.specs) == 2


def test_failed_sequence_is_an_error_event() -> None:
    failed = Failed(code="deadline_exceeded", message="the time ran out")
    decoder = FakeDecoder(FLORENCE_ANSWERS | {"Locate blue square in the image.": failed})
    fields = {
        **STREAMED,
        "task": "open_vocabulary_detection",
        "labels": ["red circle", "blue square"],
    }
    *tokens, (name, body) = parse_events(
        client(make_core(decoders={FLORENCE_ID: decoder})).predict(fields).text
    )
    assert "".join(data["text"] for _, data in tokens).startswith("red circle<loc_100>")
    assert (name, body["error"]["code"]) == ("error", "deadline_exceeded")


async def leave_after(num_bodies: int, decoder: FakeDecoder) -> list[Message]:
    """Request a stream, disconnect after `num_bodies` parts, and return the sent messages."""
    boundary = RestBoundary(SETTINGS)
    boundary.start(make_core(decoders={FLORENCE_ID: decoder}), ApiKeys(None))
    body = json.dumps({**STREAMED, "task": "object_detection"}).encode()
    received: asyncio.Queue[Message] = asyncio.Queue()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if num_bodies and sum(each["type"] == "http.response.body" for each in sent) == num_bodies:
            received.put_nowait({"type": "http.disconnect"})
            await asyncio.Event().wait()  # a full socket

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "query_string": b"",
        "headers": headers,
    }
    answering = asyncio.ensure_future(rest_app(boundary)(scope, received.get, send))
    if num_bodies == 0:
        await until(lambda: decoder.specs)
        received.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(answering, SETTINGS.request_timeout_s / 2)
    return sent


@pytest.mark.parametrize("num_bodies", [0, 1, 2])
def test_disconnected_client_is_counted_and_cancels_decoding(num_bodies: int) -> None:
    async def ask() -> FakeDecoder:
        decoder = florence(
            released=asyncio.Event() if num_bodies == 0 else None, ended=asyncio.Event()
        )
        await leave_after(num_bodies, decoder)
        # not by its deadline
        await until(lambda: decoder.num_cancelled, SETTINGS.request_timeout_s / 2)
        return decoder

    before = count("client_gone")
    assert asyncio.run(ask()).num_cancelled == 1
    assert count("client_gone") == before + 1
