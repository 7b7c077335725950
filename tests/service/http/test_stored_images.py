"""Stored images over REST: sent once, named wherever an image is, by their key alone."""

from pathlib import Path
from typing import Any

import pytest

from service.admission.api_keys import ApiKeys
from service.images.handle_store import HandleStore, StoreLimits
from tests.support.api_keys import FakeClock, hash_of
from tests.support.fake_service import PNG, data_url, make_core
from tests.support.rest_client import Client, client, error_of, fits

KEPT_S = 100


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def api(tmp_path: Path, clock: FakeClock) -> Client:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(map(hash_of, ("one", "two"))))
    store = HandleStore(tmp_path / "images", StoreLimits(10_000, 10_000, 100, KEPT_S), clock)
    store.prepare()
    return client(make_core(handles=store), ApiKeys.load(keys))


def send(api: Client, method: str, path: str, key: str = "one", **options: Any) -> Any:
    return api.send(method, path, headers={"Authorization": f"Bearer {key}"}, **options)


def stored(api: Client, key: str = "one") -> Any:
    response = send(api, "POST", "/v1/images", key, json={"image": data_url(PNG)})
    assert response.status_code == 200
    return response.json()


def test_an_image_is_stored_described_and_deleted(api: Client) -> None:
    image = stored(api)
    assert fits(image, "StoredImageJson")
    assert image == {
        "id": image["id"],
        "expires_at": 1_000 + KEPT_S,
        "bytes": len(PNG),
        "width": 640,
        "height": 480,
    }
    assert send(api, "POST", "/v1/images", files={"image": PNG}).json() == image
    path = f"/v1/images/{image['id']}"
    assert send(api, "GET", path).json() == image
    assert send(api, "DELETE", path).json() == {"id": image["id"], "deleted": True}
    assert error_of(send(api, "GET", path))["code"] == "image_expired"


def test_every_request_takes_the_id_in_place_of_the_image(api: Client) -> None:
    image = stored(api)["id"]
    fields = {"image": image, "task": "ocr"}
    for path, body in [
        ("/v1/predict", fields),
        ("/v1/compare", fields),
        ("/v1/analyze", {"image": image, "steps": [{"id": "a", "task": "ocr"}]}),
        ("/v1/predict", {"images": [image, data_url(PNG)], "task": "ocr"}),
        (
            "/v1/chat/completions",
            {
                "model": "florence-2-mini",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "<OCR>"},
                            {"type": "image_url", "image_url": {"url": image}},
                        ],
                    }
                ],
            },
        ),
    ]:
        response = send(api, "POST", path, json=body)
        assert response.status_code == 200, response.text
        assert "HELLO" in response.text
    form = {name: (None, value) for name, value in fields.items()}
    assert "HELLO" in send(api, "POST", "/v1/predict", files=form).text


def test_the_id_of_another_key_is_not_found(api: Client) -> None:
    image = stored(api)["id"]
    body = {"image": image, "task": "ocr"}
    for method, path, options in [
        ("GET", f"/v1/images/{image}", {}),
        ("DELETE", f"/v1/images/{image}", {}),
        ("POST", "/v1/predict", {"json": body}),
    ]:
        error = error_of(send(api, method, path, "two", **options))
        assert error["code"] == "not_found"
    assert stored(api, "two")["id"] != image
    assert send(api, "POST", "/v1/predict", json=body).status_code == 200


@pytest.mark.parametrize("made_up", ["img_", "img_" + "0" * 48, "img_../../secret"])
def test_a_made_up_id_is_not_found(api: Client, made_up: str) -> None:
    error = error_of(send(api, "POST", "/v1/predict", json={"image": made_up, "task": "ocr"}))
    assert (error["code"], error["param"]) == ("not_found", "image")


def test_an_expired_image_is_to_be_sent_again(api: Client, clock: FakeClock) -> None:
    image = stored(api)["id"]
    clock.now_s += KEPT_S
    error = error_of(send(api, "POST", "/v1/predict", json={"image": image, "task": "ocr"}))
    assert (error["code"], error["param"]) == ("image_expired", "image")
    assert "send it again" in error["message"]
    assert stored(api)["id"] == image
    assert send(api, "GET", f"/v1/images/{image}").status_code == 200


def test_only_an_image_is_stored(api: Client) -> None:
    assert error_of(send(api, "POST", "/v1/images", json={"image": "bm9uZQ=="}))["code"] == (
        "unsupported_image"
    )
    body = {"image": data_url(PNG), "task": "ocr"}
    assert error_of(send(api, "POST", "/v1/images", json=body))["param"] == "task"
    assert error_of(send(api, "POST", "/v1/images", json={}))["param"] == "image"


def test_a_service_without_a_folder_stores_none() -> None:
    api = client()
    for method, path in [("POST", ""), ("GET", "/a"), ("DELETE", "/a")]:
        response = api.send(method, f"/v1/images{path}", json={"image": data_url(PNG)})
        assert error_of(response)["code"] == "not_found"
    body = {"image": "img_" + "0" * 48, "task": "ocr"}
    assert error_of(api.predict(body))["code"] == "not_found"
