"""A small server that speaks a runner's HTTP: `python -m tests.deploy.small_runner HOST PORT NAME`.

It keeps the keys of the last `CACHE_SIZE` images. A call without pixels about an unknown image
answers 404. An answer names the key and the server. A call takes `X-Seconds`; the file
`X-Abort-File` gets a line for each call whose client disconnects. On SIGTERM `/readyz` answers 503
until the calls in flight are finished; then the process ends.
"""

import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

KEY = "X-Diptych-Image-Key"
CACHE_SIZE = 40
NUM_STREAM_LINES = 10


class SmallRunner:
    """The server's state and its routes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._cached_keys: list[str] = []
        self._num_in_flight = 0
        self._is_draining = False

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 << 20)
        calls = [web.post(path, self._call) for path in ("/write", "/stream")]
        app.add_routes([web.get("/readyz", self._ready), *calls])
        return app

    async def drain(self) -> None:
        """Be not ready, and return when no call is in flight."""
        self._is_draining = True
        while self._num_in_flight:
            await asyncio.sleep(0.01)

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._is_draining else 200)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        self._num_in_flight += 1
        try:
            return await self._answer(request)
        except (asyncio.CancelledError, ConnectionError):
            with Path(request.headers["X-Abort-File"]).open("a") as file:
                file.write(f"{request.path}\n")
            raise
        finally:
            self._num_in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        key = request.headers[KEY]
        seconds = float(request.headers.get("X-Seconds", "0"))
        has_pixels = len(await request.read()) > 0
        if not has_pixels and key not in self._cached_keys:
            return web.Response(status=404)
        others = [cached for cached in self._cached_keys if cached != key]
        self._cached_keys = [*others, key][-CACHE_SIZE:]
        if request.path == "/write":
            await asyncio.sleep(seconds)
            return web.json_response({"key": key, "runner": self._name, "hit": not has_pixels})
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(NUM_STREAM_LINES):
            await asyncio.sleep(seconds / NUM_STREAM_LINES)
            await response.write(f"{key}\n".encode())
        await response.write_eof()
        return response


async def serve(host: str, port: int, name: str) -> None:
    """Serve until SIGTERM, and then until the calls in flight are finished."""
    runner = SmallRunner(name)
    server = web.AppRunner(runner.app(), handler_cancellation=True)
    await server.setup()
    await web.TCPSite(server, host, port).start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await runner.drain()
    await server.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
