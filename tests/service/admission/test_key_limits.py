"""Limits of a key over REST and gRPC: 429 with the seconds until a retry."""

import asyncio

import grpc
import httpx
import pytest

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import Core
from tests.service.rpc.test_metadata import OCR as GRPC_OCR
from tests.service.rpc.test_metadata import trailing, vision
from tests.support.api_keys import FakeClock, api_keys
from tests.support.fake_runners import FakeEncoder
from tests.support.fake_service import FLORENCE_ID, encoded, make_core
from tests.support.rest_client import OCR, SETTINGS, Client, client, error_of
from tests.support.scene_images import scene_image

KEY = {"Authorization": "Bearer mine"}
FORM = {"task": "ocr"}
IMAGE = encoded(scene_image(size_wh=(1000, 500)), "JPEG", quality=10)  # half a megapixel


def limited(options: str, core: Core | None = None, clock: FakeClock | None = None) -> Client:
    return client(core, api_keys("mine", options, clock or FakeClock()))


def predict(api: Client, image: bytes = IMAGE, path: str = "/v1/predict") -> httpx.Response:
    return api.send("POST", path, data=FORM, files={"image": image}, headers=KEY)


def test_requests_count_on_every_route_and_retry_after_is_sent() -> None:
    clock = FakeClock()
    api = limited("requests_per_minute=3", clock=clock)
    assert [
        api.get("/v1/models", headers=KEY).status_code,
        predict(api).status_code,
        predict(api, b"").status_code,
    ] == [*(200, 200, 415)]
    for response in (api.get("/v1/tasks", headers=KEY), predict(api)):
        assert error_of(response)["code"] == "overloaded"
        assert response.headers["retry-after"] == "20"
    clock.now_s += 20
    assert predict(api).status_code == 200


def test_request_without_the_key_uses_none_of_its_quota() -> None:
    api = limited("requests_per_minute=1")
    for _ in range(3):
        assert api.get("/v1/models").status_code == 401
    assert predict(api).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_pixels_count_once_per_request_before_decoding(path: str) -> None:
    api = limited("megapixels_per_minute=1")
    assert [predict(api, path=path).status_code for _ in range(2)] == [200, 200]
    truncated = IMAGE[: len(IMAGE) // 2]  # decoding it would fail
    response = predict(api, truncated, path)
    assert error_of(response)["code"] == "overloaded"
    assert response.headers["retry-after"] == "30"


def test_image_above_the_quota_of_a_minute_is_too_large() -> None:
    api = client(make_core(max_image_pixels=2_000_000), api_keys("mine", "megapixels_per_minute=1"))
    error = error_of(predict(api, encoded(scene_image(size_wh=(1200, 1000)), "JPEG", quality=10)))
    assert (error["code"], error["param"]) == ("image_too_large", "image")


def test_concurrent_requests_are_limited() -> None:
    released = asyncio.Event()
    core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=released)})
    boundary = RestBoundary(SETTINGS)
    boundary.start(core, api_keys("mine", "max_concurrent=1"))

    async def predict_twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(rest_app(boundary))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://diptych", headers=KEY
        ) as api:
            first = asyncio.create_task(api.post("/v1/predict", json=OCR))
            while not core.places._pending.total:
                await asyncio.sleep(0.001)
            second = await api.post("/v1/predict", json=OCR)
            released.set()
            return [await first, second]

    first, second = asyncio.run(predict_twice())
    assert first.status_code == 200
    assert error_of(second)["code"] == "overloaded"
    assert "1 concurrent requests" in second.json()["error"]["message"]
    assert second.headers["retry-after"] == "1"


def test_named_key_is_a_client_of_that_name() -> None:
    assert api_keys("mine", "name=batch").check("Bearer mine", "192.0.2.1").name == "batch"


def test_grpc_sends_the_same_retry_after() -> None:
    async def predict(keys: ApiKeys) -> grpc.aio.AioRpcError:
        async with vision(make_core(), keys) as stub:
            metadata = [("authorization", "Bearer mine")]
            await stub.Predict(GRPC_OCR, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(GRPC_OCR, metadata=metadata)
            return caught.value

    error = asyncio.run(predict(api_keys("mine", "requests_per_minute=1", FakeClock())))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (trailing(error)["diptych-code"], trailing(error)["retry-after"]) == ("overloaded", "60")
