import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.http.boundary import RestBoundary
from service.http.middleware import Middleware
from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.fake_service import make_core
from tests.support.rest_client import SETTINGS, error_of

KEY = {"Authorization": "Bearer mine"}
POLICY = "default-src 'self'"


async def plain(_request: Request) -> Response:
    return PlainTextResponse("reason")


async def page(_request: Request) -> Response:
    return PlainTextResponse(
        "page", headers={"Content-Security-Policy": POLICY, "Cache-Control": "max-age=60"}
    )


INNER = Starlette(routes=[Route("/v1/page", page), Route("/{path:path}", plain)])


def get(app: ASGIApp, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://diptych"
        ) as client:
            return await client.get(path, headers=headers)

    return asyncio.run(send())


def middleware(settings: Settings = SETTINGS) -> Middleware:
    boundary = RestBoundary(settings)
    boundary.start(make_core(), api_keys("mine", "requests_per_minute=1"))
    return Middleware(INNER, boundary)


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/models", "/metrics"])
def test_security_headers(path: str) -> None:
    headers = get(middleware(), path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers.get("cache-control") == ("no-store" if path == "/v1/models" else None)
    assert len(headers["x-trace-id"]) == 32


def test_headers_of_the_response_stay() -> None:
    headers = get(middleware(), "/v1/page").headers
    assert headers.get_list("content-security-policy") == [POLICY]
    assert headers["cache-control"] == "max-age=60"
    assert headers["x-content-type-options"] == "nosniff"


NEEDS_KEY = Settings(metrics_need_key=True)


@pytest.mark.parametrize("path", ["/metrics", "/metrics?a=b", "/%6detrics", "/metrics%0a"])
def test_closed_path_requires_a_key(path: str) -> None:
    app = middleware(NEEDS_KEY)
    assert error_of(get(app, path))["code"] == "unauthorized"
    assert get(app, path, {"Authorization": "Bearer another"}).status_code == 401
    others = ("/livez", "/readyz", "/metricsx", "/", "/v1/metrics")
    assert {get(app, other).text for other in others} == {"reason"}
    # it does not count against the quota of one request
    assert [get(app, path, KEY).text for _ in range(3)] == ["reason"] * 3
