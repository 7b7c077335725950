"""Images by URL through every interface with them, fetched while the request is counted as in
flight.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest

from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.images.fetching import FetchLimits, ImageFetcher
from service.images.inputs import AllowedHost
from tests.support.api_keys import api_keys
from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, make_core
from tests.support.image_hosts import ImageHost, Names, listening, response
from tests.support.rest_client import OCR, SETTINGS, SMALL_PNG, client, error_of

KEY = {"Authorization": "Bearer mine"}
T = TypeVar("T")
Ask = Callable[[httpx.AsyncClient, ImageHost, str], Awaitable[T]]


def with_host(ask: Ask[T], answer: bytes, options: str = "") -> T:
    """Return the result of `ask` with a client, an allowed image host, and the URL of an image
    there.
    """

    async def run() -> T:
        async with listening(ImageHost({"/a.png": answer})) as host:
            allowed = [AllowedHost.parse(f"images.test:{host.port}")]
            limits = FetchLimits(max_bytes=SETTINGS.max_body_bytes, timeout_s=5)
            names = Names({"images.test": ["127.0.0.1"]})
            fetcher = ImageFetcher(allowed, limits, names, lambda address: address == "127.0.0.1")
            boundary = RestBoundary(SETTINGS)
            boundary.start(make_core(fetcher=fetcher), api_keys("mine", options))
            transport = httpx.ASGITransport(rest_app(boundary))
            async with httpx.AsyncClient(
                transport=transport, base_url="http://diptych", headers=KEY
            ) as api:
                return await ask(api, host, f"http://images.test:{host.port}/a.png")

    return asyncio.run(run())


def chat(url: str, text: str, model: str = FLORENCE_ID) -> dict[str, Any]:
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", "https://example.org/", "file:///etc/passwd"]
)
def test_urls_are_rejected_without_allowed_hosts(url: str) -> None:
    error = error_of(client().predict({**OCR, "image": url}))
    assert (error["code"], error["param"]) == ("invalid_request", "image")
    assert "image URLs are disabled; send a data: URL, base64 or a file" in error["message"]
    completion = client().send("POST", "/v1/chat/completions", json=chat(url, "<OCR>"))
    assert (completion.status_code, completion.json()["error"]["param"]) == (400, "image")


def test_an_image_by_url_is_answered_by_every_interface() -> None:
    async def ask(api: httpx.AsyncClient, _host: ImageHost, url: str) -> list[httpx.Response]:
        return [
            await api.post("/v1/predict", json={**OCR, "image": url}),
            await api.post("/v1/predict", files={"task": (None, "ocr"), "image": (None, url)}),
            await api.post("/v1/predict", json={**OCR, "image": url, "stream": True}),
            await api.post("/v1/compare", json={**OCR, "image": url}),
            await api.post("/v1/chat/completions", json=chat(url, "<OCR>")),
        ]

    for answer in with_host(ask, response(SMALL_PNG)):
        assert answer.status_code == 200, answer.text
        assert "HELLO" in answer.text


def test_image_by_url_is_fetched_once_for_a_region() -> None:
    async def ask(api: httpx.AsyncClient, host: ImageHost, url: str) -> tuple[httpx.Response, int]:
        prompt = "<REGION_TO_CATEGORY><loc_100><loc_100><loc_900><loc_900>"
        return await api.post("/v1/chat/completions", json=chat(url, prompt)), host.num_connections

    answer, num_connections = with_host(ask, response(SMALL_PNG))
    assert (answer.status_code, num_connections) == (200, 1), answer.text


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v1/predict", {"labls": []}, 400),
        ("/v1/predict", {"task": "nothing"}, 400),
        ("/v1/predict", {"model": "florence-9"}, 404),
        ("/v1/compare", {"models": ["florence-9"]}, 404),
    ],
)
def test_rejected_request_fetches_no_url(path: str, fields: dict[str, Any], status: int) -> None:
    async def ask(api: httpx.AsyncClient, host: ImageHost, url: str) -> None:
        assert (await api.post(path, json={**OCR, "image": url, **fields})).status_code == status
        assert (
            await api.post("/v1/chat/completions", json=chat(url, "<OCR>", "gpt"))
        ).status_code == 404
        strange = {"Authorization": "Bearer another"}
        assert (
            await api.post("/v1/predict", json={**OCR, "image": url}, headers=strange)
        ).status_code == 401
        assert host.num_connections == 0

    with_host(ask, response(SMALL_PNG))


def test_fetched_image_is_validated() -> None:
    async def ask(api: httpx.AsyncClient, _host: ImageHost, url: str) -> str:
        code: str = error_of(await api.post("/v1/predict", json={**OCR, "image": url}))["code"]
        return code

    assert with_host(ask, response(b"no image")) == "unsupported_image"
    assert with_host(ask, response(bytes(SETTINGS.max_body_bytes + 1))) == "payload_too_large"


def test_fetching_counts_as_a_concurrent_request_of_the_key() -> None:
    async def ask(api: httpx.AsyncClient, host: ImageHost, url: str) -> str:
        host.answers["/a.png"] = [b""]  # nothing comes
        reading = asyncio.create_task(api.post("/v1/predict", json={**OCR, "image": url}))
        while not host.requests:
            await asyncio.sleep(0.001)
        second = error_of(await api.post("/v1/predict", json={**OCR, "model": PALIGEMMA_ID}))
        reading.cancel()
        return str(second["message"])

    assert "has reached its limit of 1 concurrent requests" in with_host(
        ask, b"", "max_concurrent=1"
    )
