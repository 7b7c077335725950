import hashlib
from pathlib import Path

import pytest
from starlette.routing import Route

from service.admission.api_keys import ApiKeys
from service.http_app import rest_app
from tests.support.rest_client import OCR, client, error_of

PUBLIC = {
    "/",
    "/metrics",  # unless `metrics_need_key` is set: test_middleware.py
    *("/docs", "/docs/start.js", "/openapi.json", "/playground", "/playground/{file:path}"),
    *("/v2", "/v2/health/live", "/v2/health/ready"),
    # Label Studio sends webhook events without a key; the other path repeats the message in its own
    # URL.
    *(
        f"/integrations/label-studio/{path}"
        for path in ("webhook", "{model}/webhook", "failed/{status}")
    ),
}


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(b"my-key").hexdigest())
    return ApiKeys.load(file)


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic my-key"])
def test_request_without_an_accepted_key_is_rejected_on_every_route(
    keys: ApiKeys, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    api = client(keys=keys)
    for method, path in [
        ("POST", "/v1/predict"),
        ("POST", "/v1/compare"),
        ("GET", "/v1/models"),
        ("GET", "/v1/tasks"),
    ]:
        response = api.send(method, path, headers=headers)
        assert error_of(response)["code"] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"


def test_only_pages_metadata_and_health_need_no_key(keys: ApiKeys) -> None:
    api = client(keys=keys)
    routes = [route for route in rest_app(api.boundary).routes if isinstance(route, Route)]
    served = [
        (method, route.path)
        for route in routes
        for method in route.methods or ()
        if "{path" not in route.path
    ]
    statuses = {
        path: api.send(method, path).status_code for method, path in served if method != "HEAD"
    }
    assert {path for path, status in statuses.items() if status != 401} == PUBLIC
    assert len(statuses) > len(PUBLIC) + 10


def test_request_with_an_accepted_key_is_answered(keys: ApiKeys) -> None:
    api = client(keys=keys)
    assert api.predict(OCR, Authorization="Bearer my-key").status_code == 200
    assert api.get("/v1/models", headers={"Authorization": "Bearer my-key"}).status_code == 200


def test_pages_of_the_contract_need_no_key(keys: ApiKeys) -> None:
    assert [client(keys=keys).get(path).status_code for path in ("/docs", "/openapi.json")] == [
        200,
        200,
    ]


def test_wrong_keys_above_the_rate_get_429_and_the_right_one_its_answer(keys: ApiKeys) -> None:
    api = client(keys=keys)
    refused = [
        api.get("/v1/models", headers={"Authorization": f"Bearer {guess}"}) for guess in range(12)
    ]
    assert [response.status_code for response in refused] == [401] * 10 + [429] * 2
    assert error_of(refused[-1])["code"] == "overloaded"
    assert 1 <= int(refused[-1].headers["retry-after"]) <= 6
    assert api.get("/v1/models", headers={"Authorization": "Bearer my-key"}).status_code == 200
