"""Without API keys a client is its address, over every interface."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from service.admission.addresses import client_address, client_of, parse_networks
from service.admission.api_keys import ApiKeys
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, PNG, data_url, make_core, until
from tests.support.rest_client import OCR, SETTINGS, client, grpc_channel

FLORENCE_ID = "florence-2-mini"
PROXIES = ("10.0.0.1", "172.16.0.0/12", "fd00::/8")
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
CHAT = [{"role": "user", "content": [{"type": "text", "text": "<OCR>"}, CHAT_IMAGE]}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/predict": OCR,
    "/v1/compare": OCR | {"models": [FLORENCE_ID]},
    "/v1/analyze": {"image": OCR["image"], "steps": [{"id": "a", "task": "ocr"}]},
    "/v1/chat/completions": {"model": FLORENCE_ID, "messages": CHAT},
    "/integrations/x-anylabeling/v1/predict": {
        "model": FLORENCE_ID,
        "image": data_url(PNG),
        "params": {"current_task": "ocr"},
    },
}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff%eth0", "2001:db8:1:2::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_client_of_an_address(address: str, name: str) -> None:
    assert client_of(address) == name


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # not a trusted proxy
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),  # the first may be invented
        ("10.0.0.1", "198.51.100.7, 172.16.9.9", "198.51.100.7"),
        ("fd00::1", "1.1.1.1,198.51.100.7 ,172.16.9.9", "198.51.100.7"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "198.51.100.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, x, 172.16.9.9", "172.16.9.9"),
        ("10.0.0.1", "172.16.9.9", "172.16.9.9"),
        ("testclient", "198.51.100.7", "testclient"),
    ],
)
def test_address_behind_trusted_proxies(peer: str, forwarded: str | None, address: str) -> None:
    assert client_address(peer, forwarded, parse_networks(PROXIES)) == address
    assert client_address(peer, forwarded, ()) == peer


async def post(
    path: str, decoder: FakeDecoder, proxies: tuple[str, ...], headers: Mapping[str, str]
) -> httpx.Response:
    settings = SETTINGS.model_copy(update={"trusted_proxies": proxies})
    api = client(make_core(decoders={FLORENCE_ID: decoder}), values=settings)
    async with api.http(headers) as http:
        return await http.post(path, json=REQUESTS[path])


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize(
    ("proxies", "name"), [((), "127.0.0.1"), (("127.0.0.1",), "2001:db8::/64")]
)
async def test_address_is_the_client(path: str, proxies: tuple[str, ...], name: str) -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    response = await post(path, decoder, proxies, {"X-Forwarded-For": "1.1.1.1, 2001:db8::7"})
    assert response.is_success
    assert [spec.client for spec in decoder.specs] == [name]


@pytest.mark.parametrize(
    ("proxies", "name"), [((), "127.0.0.1"), (("127.0.0.0/8",), "2001:db8::/64")]
)
async def test_address_is_the_client_over_grpc(proxies: tuple[str, ...], name: str) -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(decoders={FLORENCE_ID: decoder})
    async with grpc_channel(core, ApiKeys(None), trusted_proxies=proxies) as channel:
        vision: Any = VisionStub(channel)
        metadata = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2001:db8::7")]
        await vision.Predict(pb.PredictRequest(image=PNG, task="ocr"), metadata=metadata)
    assert [spec.client for spec in decoder.specs] == [name]


async def test_unfinished_bodies_of_an_address_leave_places_to_others() -> None:
    core = make_core(max_pending=4)
    app = client(core).app()
    released = asyncio.Event()

    async def unfinished() -> AsyncIterator[bytes]:
        yield b"{"
        await released.wait()
        yield b"}"

    def http(address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://diptych")

    headers = {"Content-Type": "application/json"}
    with ExitStack() as ended:
        ended.callback(released.set)
        async with http("127.0.0.9") as hostile, http("127.0.0.1") as polite:
            calls = [
                asyncio.create_task(
                    hostile.post("/v1/predict", content=unfinished(), headers=headers)
                )
                for _ in range(7)
            ]
            await until(lambda: sum(call.done() for call in calls) == 3)  # 4 have places
            for _ in range(3):
                response = await polite.post("/v1/predict", json=OCR)
                assert response.status_code == 200, response.text
            released.set()
            statuses = sorted([(await call).status_code for call in calls])
    assert statuses == [400] * 4 + [429] * 3
