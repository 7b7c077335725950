"""Files of a Label Studio on this machine, which answers by path.

The fetcher's own rules are tested with it.
"""

import asyncio
import json
from collections.abc import Mapping

import pytest

from service.errors import InvalidRequest, ServiceError
from service.images.fetching import ImageFetcher
from service.images.inputs import AllowedHost
from service.label_studio.images import LabelStudioHost, TaskImages
from service.settings import Settings, SettingsError, read_settings
from tests.support.fake_service import PNG, context, make_core
from tests.support.image_hosts import ImageHost, Names, listening, redirect, response

LEGACY = "0" * 40
PERSONAL = "e30.e30.c2ln"
EXCHANGED = response(b'{"access": "short"}', "200 OK", "Content-Type: application/json")


def read(
    source: str | None, answers: Mapping[str, bytes] = {}, token: str = LEGACY, prefix: str = ""
) -> tuple[bytes | ServiceError, list[str]]:
    """Return the image or the error, and the heads of the requests to Label Studio.

    PORT is its port in `source`.
    """

    async def scenario() -> tuple[bytes | ServiceError, list[str]]:
        async with listening(ImageHost(dict(answers))) as host:
            settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}{prefix}/")
            names = Names({"images.test": ["127.0.0.1"]})
            allowed = [AllowedHost("images.test", host.port)]
            fetcher = ImageFetcher(allowed, 1_000_000, 5, lambda _: True, names)
            images = TaskImages(make_core(fetcher=fetcher), LabelStudioHost.of(settings), token)
            url = None if source is None else source.replace("PORT", str(host.port), 1)
            try:
                outcome: bytes | ServiceError = await images.read(url, context(timeout_s=10))
            except ServiceError as error:
                outcome = error
            return outcome, host.requests

    return asyncio.run(scenario())


def headers_of(request: str) -> dict[str, str]:
    lines = request.split("\r\n")[1:]
    parts = [line.partition(": ") for line in lines]
    return {name.lower(): value for name, _, value in parts if name}


def refusal(outcome: bytes | ServiceError) -> str:
    assert isinstance(outcome, InvalidRequest)
    assert outcome.param == "image"
    assert LEGACY not in outcome.message
    assert PERSONAL not in outcome.message
    return outcome.message


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("/data/upload/1/a b.png", "/data/upload/1/a%20b.png"),
        ("http://127.0.0.1:PORT/data/upload/1/a%20b.png", "/data/upload/1/a%20b.png"),
        ("/data/local-files/?d=a b/è.png", "/data/local-files/?d=a%20b/%C3%A8.png"),
    ],
)
def test_file_of_label_studio_is_fetched(source: str, path: str) -> None:
    outcome, (request,) = read(source, {path: response(PNG)})
    assert outcome == PNG
    assert headers_of(request)["authorization"] == f"Token {LEGACY}"


@pytest.mark.parametrize("prefix", ["", "/ls"])
def test_personal_token_is_exchanged(prefix: str) -> None:
    path = f"{prefix}/data/a.png"
    answers = {f"{prefix}/api/token/refresh/": EXCHANGED, path: response(PNG)}
    outcome, (exchange, request) = read(path, answers, PERSONAL, prefix)
    assert outcome == PNG
    assert exchange.startswith("POST ")
    assert "authorization" not in headers_of(exchange)
    assert headers_of(request)["authorization"] == "Bearer short"


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect"])
async def test_token_exchange_follows_no_redirect(status: str) -> None:
    """A 307 repeats the request with its body, which is the token."""

    async with (
        listening(ImageHost({"/stolen": EXCHANGED})) as other,
        listening(ImageHost()) as host,
    ):
        location = f"Location: http://127.0.0.1:{other.port}/stolen"
        host.answers["/api/token/refresh/"] = response(b"", status, location)
        settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}")
        images = TaskImages(make_core(), LabelStudioHost.of(settings), PERSONAL)
        with pytest.raises(InvalidRequest, match="does not accept the access token"):
            await images.read("/data/a.png", context(timeout_s=10))
        assert (len(host.requests), other.num_connections) == (1, 0)


async def test_token_is_exchanged_once_a_call() -> None:
    answers = {"/api/token/refresh/": EXCHANGED, "/data/a.png": response(PNG)}
    async with listening(ImageHost(answers)) as host:
        settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}")
        images = TaskImages(make_core(), LabelStudioHost.of(settings), PERSONAL)
        reads = (images.read("/data/a.png", context(timeout_s=10)) for _ in range(3))
        assert await asyncio.gather(*reads) == [PNG] * 3
        assert len(host.requests) == 1 + 3


@pytest.mark.parametrize("access", [None, 5, "", "a\r\nX: y", "ä", "x" * 4097])
def test_exchanged_token_must_fit_a_header(access: object) -> None:
    answer = json.dumps({"access": access}).encode()
    exchanged = response(answer, "200 OK", "Content-Type: application/json")
    outcome, requests = read("/data/a.png", {"/api/token/refresh/": exchanged}, PERSONAL)
    assert "does not accept the access token" in refusal(outcome)
    assert len(requests) == 1


def test_other_hosts_get_no_token() -> None:
    outcome, (request,) = read("http://images.test:PORT/a.png", {"/a.png": response(PNG)})
    assert outcome == PNG
    assert "authorization" not in headers_of(request)


def test_redirect_gets_no_token() -> None:
    outcome, requests = read("/a.png", {"/a.png": redirect("http://images.test:1/b.png")})
    assert "image is a URL at images.test" in refusal(outcome)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("source", "token", "reason"),
    [
        ("/data/a.png", "", "no access token of it was sent; enter KEY:TOKEN"),
        ("/data/a.png", "x.y", "no access token of it was sent"),
        ("/data/a.png", PERSONAL, "does not accept the access token"),
        ("/data/a.png", LEGACY, "answers with status 404"),
        ("/" + "a" * 2047, LEGACY, "image must be an http(s) URL"),
        ("//images.test/a.png", LEGACY, "is a file of Label Studio"),
        ("http://elsewhere.test/a.png", LEGACY, "the allowed hosts are images.test"),
        ("s3://bucket/a.png", LEGACY, "image must be an http(s) URL"),
        (None, LEGACY, "the task's image is None"),
        ("/" + "a" * 2048, LEGACY, "the image's path exceeds 2048 characters"),
        ("http://127.0.0.1:PORT/" + "a" * 20_000_000, LEGACY, "path exceeds 2048 characters"),
        ("", LEGACY, "it must be a URL"),
    ],
)
def test_unreadable_source(source: str | None, token: str, reason: str) -> None:
    assert reason in refusal(read(source, token=token)[0])


def test_files_of_label_studio_need_its_url() -> None:
    images = TaskImages(make_core(), LabelStudioHost.of(Settings()), LEGACY)
    with pytest.raises(InvalidRequest, match="DIPTYCH_LABEL_STUDIO_URL is not set"):
        asyncio.run(images.read("/data/a.png", context()))


def test_unreachable_label_studio_is_an_error() -> None:
    host = LabelStudioHost.of(Settings(label_studio_url="http://127.0.0.1:1"))
    images = TaskImages(make_core(), host, PERSONAL)
    with pytest.raises(InvalidRequest, match="DIPTYCH_LABEL_STUDIO_URL does not exchange"):
        asyncio.run(images.read("/data/a.png", context()))


@pytest.mark.parametrize("url", ["ftp://a.b", "http://user@a.b", "a.b", "http://a.b?c"])
def test_url_is_checked_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="DIPTYCH_LABEL_STUDIO_URL"):
        read_settings({"DIPTYCH_LABEL_STUDIO_URL": url})
