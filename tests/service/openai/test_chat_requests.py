"""Parts of a message that reach the decoder, and several messages at the same time."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.request_fields import GenerationFields
from service.openai.wire import ChatRequest
from tests.service.openai.test_chat import PATH, body, image, text
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PNG, data_url, make_core
from tests.support.rest_client import SETTINGS, client
from wire.runner_messages import SequenceSpec


def spec_of(request: Mapping[str, Any], answers: Mapping[str, str] | None = None) -> SequenceSpec:
    """Return the one sequence that the decoder of Florence-2 gets for a message."""
    decoder = FakeDecoder(answers or FLORENCE_ANSWERS)
    response = client(make_core(decoders={FLORENCE_ID: decoder})).send("POST", PATH, json=request)
    assert response.status_code == 200, response.text
    (spec,) = decoder.specs
    return spec


def test_a_message_without_options_is_decoded_greedily() -> None:
    spec = spec_of(body())
    assert (spec.temperature, spec.top_p, spec.seed, spec.max_new_tokens) == (0, 1, None, None)


def test_options_reach_the_decoder() -> None:
    spec = spec_of(body(temperature=0.5, top_p=0.9, seed=2**63 - 1, max_tokens=4))
    assert (spec.temperature, spec.top_p, spec.seed) == (0.5, 0.9, 2**63 - 1)
    assert spec.max_new_tokens == 4
    assert spec_of(body(max_tokens=4, max_completion_tokens=5)).max_new_tokens == 5


def test_the_bounds_of_options_are_those_of_predict() -> None:
    for name in ("temperature", "top_p", "seed"):
        field = ChatRequest.model_fields[name]
        assert field.metadata == GenerationFields.model_fields[name].metadata, name


def test_a_region_is_that_of_the_image_s_width_and_height() -> None:
    region = "<loc_100><loc_250><loc_900><loc_750>"
    asked = [text(f"<REGION_TO_CATEGORY>{region}"), image(data_url(PNG))]
    prompt = f"What is the region {region}?"
    spec = spec_of(
        body() | {"messages": [{"role": "user", "content": asked}]}, {prompt: "a circle"}
    )
    assert "".join(segment for segment, _ in spec.segments) == prompt


def test_messages_in_flight_together_have_their_own_answers() -> None:
    asked = {"<OCR>": "HELLO", "<CAPTION>": "a red circle", "what is it?": "a circle"}

    async def ask() -> list[httpx.Response]:
        released = asyncio.Event()
        decoder = FakeDecoder(FLORENCE_ANSWERS, released=released)
        boundary = RestBoundary(SETTINGS)
        boundary.start(make_core(decoders={FLORENCE_ID: decoder}), ApiKeys(None))
        transport = httpx.ASGITransport(rest_app(boundary))
        async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as http:
            sent = [asyncio.create_task(http.post(PATH, json=body(each))) for each in asked]
            await until(lambda: decoder.num_waiting == len(asked))
            released.set()
            return await asyncio.gather(*sent)

    completions = [response.json() for response in asyncio.run(ask())]
    written = [each["choices"][0]["message"]["content"] for each in completions]
    assert written == list(asked.values())
    assert len({each["id"] for each in completions}) == len(asked)
