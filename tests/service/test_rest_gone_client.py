"""A client that closes its connection before its answer is there."""

import asyncio
import json

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message

from service.api_keys import ApiKeys
from service.rest_app import rest_app
from service.rest_boundary import RestBoundary
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PALIGEMMA_ANSWERS, PALIGEMMA_ID, make_core
from tests.support.rest_client import OCR, SETTINGS

GONE = {"api": "rest", "model": "none", "task": "none", "status": "client_gone"}


def num_gone() -> float:
    return REGISTRY.get_sample_value("diptych_requests_total", GONE) or 0.0


async def leave(path: str, decoders: dict[str, FakeDecoder]) -> list[Message]:
    """Ask, go when every decoder is at work, and return what the service still sent."""
    boundary = RestBoundary(SETTINGS)
    boundary.start(make_core(decoders=decoders), ApiKeys(None))
    body = json.dumps(OCR).encode()
    received: asyncio.Queue[Message] = asyncio.Queue()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    answering = asyncio.ensure_future(rest_app(boundary)(scope, received.get, send))
    await until(lambda: all(decoder.specs for decoder in decoders.values()))
    received.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(answering, 5)
    return sent


@pytest.mark.parametrize(
    ("path", "model_ids"), [("/v1/predict", [FLORENCE_ID]), ("/v1/compare", [FLORENCE_ID, PALIGEMMA_ID])]
)
def test_its_decoders_are_told_and_it_is_counted(path: str, model_ids: list[str]) -> None:
    async def ask() -> list[Message]:
        for decoder in decoders.values():
            decoder.released = asyncio.Event()
        return await leave(path, decoders)

    answers = {FLORENCE_ID: FLORENCE_ANSWERS, PALIGEMMA_ID: PALIGEMMA_ANSWERS}
    decoders = {model_id: FakeDecoder(answers[model_id]) for model_id in model_ids}
    before = num_gone()
    sent = asyncio.run(ask())
    assert [decoder.num_cancelled for decoder in decoders.values()] == [1] * len(model_ids)
    assert num_gone() == before + 1
    assert sent[0]["status"] == 499  # nobody reads it
