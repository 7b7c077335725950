"""What a key may ask for, over REST and gRPC: 429 with the seconds until there is room."""

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


def ask(api: Client, image: bytes = IMAGE, path: str = "/v1/predict") -> httpx.Response:
    return api.send("POST", path, data=FORM, files={"image": image}, headers=KEY)


def test_requests_of_a_minute_count_on_every_route_and_the_wait_is_told() -> None:
    clock = FakeClock()
    api = limited("requests_per_minute=3", clock=clock)
    assert [api.get("/v1/models", headers=KEY).status_code, ask(api).status_code, ask(api, b"").status_code] == [
        *(200, 200, 415)
    ]
    for response in (api.get("/v1/tasks", headers=KEY), ask(api)):
        assert error_of(response)["code"] == "overloaded"
        assert response.headers["retry-after"] == "20"
    clock.now_s += 20
    assert ask(api).status_code == 200


def test_a_request_without_the_key_takes_nothing_of_its_limits() -> None:
    api = limited("requests_per_minute=1")
    for _ in range(3):
        assert api.get("/v1/models").status_code == 401
    assert ask(api).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_pixels_count_once_for_each_request_before_they_are_decoded(path: str) -> None:
    api = limited("megapixels_per_minute=1")
    assert [ask(api, path=path).status_code for _ in range(2)] == [200, 200]
    cut_off = IMAGE[: len(IMAGE) // 2]  # its pixels would be found broken
    response = ask(api, cut_off, path)
    assert error_of(response)["code"] == "overloaded"
    assert response.headers["retry-after"] == "30"


def test_an_image_that_no_minute_holds_is_too_large() -> None:
    api = client(make_core(max_image_pixels=2_000_000), api_keys("mine", "megapixels_per_minute=1"))
    error = error_of(ask(api, encoded(scene_image(size_wh=(1200, 1000)), "JPEG", quality=10)))
    assert (error["code"], error["param"]) == ("image_too_large", "image")


def test_requests_at_one_time_are_bounded() -> None:
    released = asyncio.Event()
    core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=released)})
    boundary = RestBoundary(SETTINGS)
    boundary.start(core, api_keys("mine", "max_concurrent=1"))

    async def ask_twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(rest_app(boundary))
        async with httpx.AsyncClient(transport=transport, base_url="http://diptych", headers=KEY) as api:
            first = asyncio.create_task(api.post("/v1/predict", json=OCR))
            while not core._pending.total:
                await asyncio.sleep(0.001)
            second = await api.post("/v1/predict", json=OCR)
            released.set()
            return [await first, second]

    first, second = asyncio.run(ask_twice())
    assert first.status_code == 200
    assert error_of(second)["code"] == "overloaded"
    assert "1 requests at one time" in second.json()["error"]["message"]
    assert second.headers["retry-after"] == "1"


def test_a_key_of_its_own_is_a_client_of_its_own() -> None:
    assert api_keys("mine", "name=batch").check("Bearer mine").name == "batch"


def test_grpc_tells_the_same_seconds() -> None:
    async def ask(keys: ApiKeys) -> grpc.aio.AioRpcError:
        async with vision(make_core(), keys) as stub:
            metadata = [("authorization", "Bearer mine")]
            await stub.Predict(GRPC_OCR, metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(GRPC_OCR, metadata=metadata)
            return caught.value

    error = asyncio.run(ask(api_keys("mine", "requests_per_minute=1", FakeClock())))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (trailing(error)["diptych-code"], trailing(error)["retry-after"]) == ("overloaded", "60")
