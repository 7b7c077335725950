"""A client that disconnects before its answer."""

import asyncio
import json

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ANSWERS,
    PALIGEMMA_ID,
    make_core,
)
from tests.support.rest_client import OCR, SETTINGS

TENSORS = [
    {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
    for name, value in OCR.items()
]


def num_gone(api: str) -> float:
    labels = {"api": api, "model": "none", "task": "none", "status": "client_gone"}
    return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0


async def leave(path: str, fields: object, decoders: dict[str, FakeDecoder]) -> list[Message]:
    """Send a request, disconnect once every decoder is busy, and return the messages sent
    afterwards.
    """
    boundary = RestBoundary(SETTINGS)
    boundary.start(make_core(decoders=decoders), ApiKeys(None))
    body = json.dumps(fields).encode()
    received: asyncio.Queue[Message] = asyncio.Queue()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "root_path": "",
    }
    answering = asyncio.ensure_future(rest_app(boundary)(scope, received.get, send))
    await until(lambda: all(decoder.specs for decoder in decoders.values()))
    if isinstance(fields, dict) and "steps" in fields:  # the first answer is not held
        await until(lambda: any(b"event: " in message.get("body", b"") for message in sent))
    received.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(answering, 60)
    return sent


@pytest.mark.parametrize(
    ("path", "fields", "model_ids", "api"),
    [
        ("/v1/predict", OCR, [FLORENCE_ID], "rest"),
        ("/v1/compare", OCR, [FLORENCE_ID, PALIGEMMA_ID], "rest"),
        (f"/v2/models/{PALIGEMMA_ID}/infer", {"inputs": TENSORS}, [PALIGEMMA_ID], "oip"),
    ],
    ids=["predict", "compare", "infer"],
)
def test_disconnected_client_cancels_its_decoders_and_is_counted(
    path: str, fields: object, model_ids: list[str], api: str
) -> None:
    async def ask() -> list[Message]:
        for decoder in decoders.values():
            decoder.released = asyncio.Event()
        return await leave(path, fields, decoders)

    answers = {FLORENCE_ID: FLORENCE_ANSWERS, PALIGEMMA_ID: PALIGEMMA_ANSWERS}
    decoders = {model_id: FakeDecoder(answers[model_id]) for model_id in model_ids}
    before = num_gone(api)
    sent = asyncio.run(ask())
    assert [decoder.num_cancelled for decoder in decoders.values()] == [1] * len(model_ids)
    assert num_gone(api) == before + 1
    assert sent[0]["status"] == 499  # nobody reads it


def test_a_client_that_leaves_a_stream_of_answers_ends_the_others() -> None:
    """The server cancels the stream again and again until it has ended."""
    held = FakeDecoder(PALIGEMMA_ANSWERS)
    steps = [
        {"id": "answered", "task": "ocr"},
        {"id": "held", "task": "ocr", "model": PALIGEMMA_ID},
    ]

    async def ask() -> None:
        held.released = asyncio.Event()
        fields = {"image": OCR["image"], "steps": steps, "stream": True}
        await leave("/v1/analyze", fields, {PALIGEMMA_ID: held})
        await until(lambda: not held.num_waiting)

    before = num_gone("rest")
    asyncio.run(asyncio.wait_for(ask(), 60))
    assert held.num_cancelled == 1
    assert num_gone("rest") == before + 1
