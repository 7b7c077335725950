import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runners.runner_api import BodyGuard, BuildGuard, LoadedBuild
from wire.pixels import BUILD_HEADER

PICKLE = "application/vnd.bentoml+pickle"


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


APP = BodyGuard(
    Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in ("/encode", "/write")])
)


def send(
    method: str, content_type: str | None, path: str = "/encode", **more: str
) -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(APP), base_url="http://runner"
        ) as client:
            headers = more if content_type is None else {"Content-Type": content_type} | more
            return await client.request(method, path, content=b"{}", headers=headers)

    return asyncio.run(request())


def test_json_is_accepted() -> None:
    assert send("POST", "application/json").text == "{}"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        PICKLE,
        PICKLE.upper(),
        f"{PICKLE}; a=b",
        f" {PICKLE}",
        f"application/json, {PICKLE}",
        "text/plain",
    ],
)
def test_other_content_types_are_refused(content_type: str | None) -> None:
    assert send("POST", content_type).status_code == 415


@pytest.mark.parametrize(("path", "status"), [("/write", 200), ("/encode", 415)])
def test_pixels_are_accepted_in_calls_only(path: str, status: int) -> None:
    assert send("POST", "application/octet-stream", path).status_code == status


def test_probes_pass() -> None:
    assert send("GET", None).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": "16000000"}, 200),
        ({"Content-Length": "16000001"}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "many"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_a_body_needs_a_length_up_to_the_maximum(headers: dict[str, str], status: int) -> None:
    assert send("POST", "application/json", **headers).status_code == status


async def answer(_request: Request) -> Response:
    return PlainTextResponse("here")


@pytest.mark.parametrize(
    ("loaded", "requested", "status"),
    [
        ("a", "a", 200),
        ("a", "b", 503),
        ("a", "", 503),
        (None, "a", 503),
        ("a", None, 200),  # a gateway on the same host, with the same artifacts
        (None, None, 200),
    ],
)
def test_requests_for_another_build_are_refused(
    loaded: str | None, requested: str | None, status: int
) -> None:
    build = LoadedBuild()
    build.key = loaded
    app = BuildGuard(Starlette(routes=[Route("/readyz", answer)]), build)

    async def get() -> int:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://runner"
        ) as client:
            headers = {} if requested is None else {BUILD_HEADER: requested}
            return (await client.get("/readyz", headers=headers)).status_code

    assert asyncio.run(get()) == status
