"""How pixels reach a runner of the same host faster: `python -m export.bench.transport`.

A server in its own process reads calls as a runner does (wire/pixels.py), on a socket.
Each way is timed in turn: pixels in the request's body, and in a memfd that the call names.
"""

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wire.pixels import MESSAGE_BYTES_HEADER, Pixels, body_of, in_memory, read_call
from wire.runner_messages import WriteCall

SIDES_PX = (192, 224, 448, 768, 896)
_NUM_CALLS = 200


async def _read(request: Request) -> Response:
    side = int(request.path_params["side"])
    read_call(await request.body(), request.headers.get(MESSAGE_BYTES_HEADER), (side, side, 3))
    return Response(b"{}")


def _serve(path: str) -> None:
    app = Starlette(routes=[Route("/{side}", _read, methods=["POST"])])
    uvicorn.run(app, uds=path, log_level="error")


async def _median_ms(call: Callable[[], Awaitable[None]]) -> float:
    found = []
    for _ in range(_NUM_CALLS):
        start_s = time.monotonic()
        await call()
        found.append(time.monotonic() - start_s)
    return statistics.median(found[_NUM_CALLS // 10 :]) * 1000


async def measure(path: Path) -> None:
    """Print a row for each size of an image."""
    while not path.exists():
        await asyncio.sleep(0.05)
    async with aiohttp.ClientSession(
        "http://runner", connector=aiohttp.UnixConnector(str(path))
    ) as http:
        for side in SIDES_PX:
            pixels: Pixels = np.random.default_rng(0).integers(
                0, 256, (side, side, 3), dtype=np.uint8
            )
            body_ms = await _median_ms(
                lambda side=side, pixels=pixels: _in_body(http, side, pixels)
            )  # type: ignore[misc]
            memory_ms = await _median_ms(
                lambda side=side, pixels=pixels: _in_memory(http, side, pixels)
            )  # type: ignore[misc]
            print(
                f"{side} px: {body_ms:.2f} ms in the body, {memory_ms:.2f} ms in memory", flush=True
            )


async def _in_body(http: aiohttp.ClientSession, side: int, pixels: Pixels) -> None:
    body, headers = body_of(WriteCall(sequences=[]), pixels)
    await _post(http, side, body, headers)


async def _in_memory(http: aiohttp.ClientSession, side: int, pixels: Pixels) -> None:
    with in_memory(pixels) as memory:
        await _post(http, side, *body_of(WriteCall(sequences=[], pixels=memory), None))


async def _post(
    http: aiohttp.ClientSession, side: int, body: bytes, headers: dict[str, str]
) -> None:
    async with http.post(f"/{side}", data=body, headers=headers) as response:
        response.raise_for_status()


def main() -> None:
    """Measure, and end the server."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runner.sock"
        server = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(str(path),), daemon=True
        )
        server.start()
        try:
            asyncio.run(measure(path))
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
