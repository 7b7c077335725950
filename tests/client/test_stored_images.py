"""An image is sent once for all calls of a context, and again when the service has dropped it."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from diptych_client import AsyncClient, Client, ImageExpired, StoredImage
from tests.support.both_clients import KINDS
from tests.support.scripted_services import ANSWER, Refusal, Script, Step, scripted

DATA = b"the bytes of an image"


def stored(image_id: str) -> bytes:
    return json.dumps({"id": image_id}).encode()


def asked_twice(kind: str, url: str) -> None:
    """Send two questions about one image."""

    async def run() -> None:
        async with AsyncClient(url) as client, client.image(DATA) as image:
            assert await client.predict(image, "ocr") == ANSWER
            assert (await client.compare(image, "ocr")) is not None

    if kind == "async":
        asyncio.run(run())
        return
    with Client(url) as client, client.image(DATA) as image:
        assert client.predict(image, "ocr") == ANSWER
        assert client.compare(image, "ocr") is not None


def script_of(kind: str, steps: Sequence[Step], interface: str = "rest") -> Script:
    with scripted(interface, steps) as (url, script):
        asked_twice(kind, url)
    return script


COMPARISON = json.dumps(
    {"id": "a", "task": "ocr", "image": {"width": 1, "height": 1}, "answers": []}
).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_sent_once_and_removed_at_the_end(kind: str) -> None:
    script = script_of(kind, [stored("img_1"), ANSWER, COMPARISON])
    assert [DATA in each.body for each in script.received] == [True, False, False]
    assert [b"img_1" in each.body for each in script.received] == [False, True, True]
    assert script.removed == ["/v1/images/img_1"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_expired_image_is_sent_again(kind: str) -> None:
    expired = Refusal("image_expired")
    steps: list[Step] = [stored("img_1"), ANSWER, expired, stored("img_2"), COMPARISON]
    script = script_of(kind, steps)
    assert [DATA in each.body for each in script.received] == [True, False, False, True, False]
    assert b"img_2" in script.received[-1].body
    assert script.removed == ["/v1/images/img_2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", ["not_found", "invalid_request"])
def test_a_service_that_stores_none_gets_the_image_with_each_call(kind: str, code: str) -> None:
    script = script_of(kind, [Refusal(code), ANSWER, COMPARISON])
    assert [DATA in each.body for each in script.received] == [True, True, True]
    assert not script.removed


def test_over_grpc_the_image_is_sent_with_each_call() -> None:
    with scripted("grpc", []) as (url, script), Client(url) as client:
        with client.image(DATA) as image:
            assert image == StoredImage(DATA)
            assert client.predict(image, "ocr") == ANSWER
        assert len(script.received) == 1


def test_an_id_that_the_caller_has_is_not_sent_again() -> None:
    with scripted("rest", [Refusal("image_expired")]) as (url, script), Client(url) as client:
        with pytest.raises(ImageExpired):
            client.predict("http://example.org/image.png", "ocr")
        assert len(script.received) == 1
