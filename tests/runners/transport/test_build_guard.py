import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runners.transport.build_guard import BUILD_HEADER, BuildGuard, LoadedBuild


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
def test_requests_for_another_build_are_refused(loaded: str | None, requested: str | None, status: int) -> None:
    build = LoadedBuild()
    build.key = loaded
    app = BuildGuard(Starlette(routes=[Route("/readyz", answer)]), build)

    async def get() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://runner") as client:
            headers = {} if requested is None else {BUILD_HEADER: requested}
            return (await client.get("/readyz", headers=headers)).status_code

    assert asyncio.run(get()) == status
