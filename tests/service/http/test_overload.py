"""Requests beyond the capacity are refused at once, and all that were accepted are answered."""

import asyncio
from collections import Counter

import httpx

from service.http_app import rest_app
from tests.support.core_calls import until
from tests.support.fake_runners import FakeEncoder
from tests.support.fake_service import FLORENCE_ID, make_core
from tests.support.rest_client import OCR, client, error_of

CAPACITY = 8


def test_ten_times_the_capacity() -> None:
    """The model answers only when all others are refused."""

    async def send_all() -> list[httpx.Response]:
        released = asyncio.Event()
        encoders = {FLORENCE_ID: FakeEncoder(released=released)}
        app = rest_app(client(make_core(encoders, max_pending=CAPACITY)).boundary)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as http:
            requests = []
            for _ in range(10 * CAPACITY):
                requests.append(asyncio.create_task(http.post("/v1/predict", json=OCR)))
            await until(lambda: sum(request.done() for request in requests) == 9 * CAPACITY)
            released.set()
            return await asyncio.gather(*requests)

    responses = asyncio.run(send_all())
    statuses = Counter(response.status_code for response in responses)
    assert statuses == {200: CAPACITY, 429: 9 * CAPACITY}
    for response in responses:
        if response.is_error:
            assert error_of(response)["code"] == "overloaded"
            assert int(response.headers["Retry-After"]) >= 1
