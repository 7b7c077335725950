"""Encoders and decoders that compute nothing: each answers after a fixed time, as many calls at once as it has slots.

    python -m loadtest.simulated_runners --encoders PORT,… --decoders PORT,… --encode-ms 400 --write-ms 1600 --slots 4

One process for all, each at a port of its own. They speak the runners' JSON (runners/messages.py) and are out of
reach of the gateway's memory, so that pixels and features travel with their bytes; every image has the same features.
"""

import argparse
import asyncio
import base64
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from aiohttp import web

NUM_IMAGE_TOKENS, HIDDEN_SIZE = 145, 128  # of florence-2-mini (its manifest); a gateway refuses any other
_FLOAT32_BYTES = 4
_MAX_BODY_BYTES = 64_000_000
_TEXT = "The image shows a small blue triangle on a dark background."
_NUM_TOKENS = 12


class SimulatedRunner:
    """One replica: it sleeps `service_s` for each call, at most `num_slots` at a time; others wait."""

    def __init__(self, service_s: float, num_slots: int) -> None:
        self._service_s = service_s
        self._slots = asyncio.Semaphore(num_slots)

    def app(self) -> web.Application:
        """Return its HTTP interface."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/readyz", _ready),
                web.post("/can_open", _can_open),
                web.post("/encode", self._encode),
                web.post("/write", self._write),
            ]
        )
        return app

    async def _encode(self, request: web.Request) -> web.Response:
        return await self._served(request, _encoded(self._service_s))

    async def _write(self, request: web.Request) -> web.Response:
        return await self._served(request, _written(self._service_s))

    async def _served(self, request: web.Request, answer: bytes) -> web.Response:
        await request.read()
        async with self._slots:
            if self._service_s:
                await asyncio.sleep(self._service_s)
        return web.Response(body=answer, content_type="application/json")


async def _ready(_request: web.Request) -> web.Response:
    return web.Response()


async def _can_open(_request: web.Request) -> web.Response:
    return web.json_response(False)


def _encoded(encode_s: float) -> bytes:
    data = base64.b64encode(bytes(NUM_IMAGE_TOKENS * HIDDEN_SIZE * _FLOAT32_BYTES)).decode()
    features = {"kind": "array", "dtype": "float32", "shape": [NUM_IMAGE_TOKENS, HIDDEN_SIZE], "data": data}
    return json.dumps({"outcome": {"kind": "encoded", "image_features": features, "encode_s": encode_s}}).encode()


def _written(decode_s: float) -> bytes:
    ends = [len(_TEXT) * number // _NUM_TOKENS for number in range(1, _NUM_TOKENS + 1)]
    outcome: dict[str, Any] = {
        "kind": "written",
        "text": _TEXT,
        "token_ends": ends,
        "logprobs": [-0.1] * _NUM_TOKENS,
        "finish_reason": "stop",
        "num_prompt_tokens": 8,
        "num_generated_tokens": _NUM_TOKENS,
        "queue_s": 0.0,
        "prefill_s": 0.0,
        "decode_s": decode_s,
    }
    return json.dumps({"outcomes": [outcome]}).encode()


async def serve(replicas: dict[int, SimulatedRunner]) -> None:
    """Serve each at its port of this host, until the process is ended."""
    async with AsyncExitStack() as stack:
        for port, replica in replicas.items():
            runner = web.AppRunner(replica.app(), access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve what the arguments say."""
    parser = argparse.ArgumentParser("python -m loadtest.simulated_runners")
    parser.add_argument("--encoders", type=_ports, required=True, metavar="PORT,…")
    parser.add_argument("--decoders", type=_ports, required=True, metavar="PORT,…")
    parser.add_argument("--encode-ms", type=float, required=True)
    parser.add_argument("--write-ms", type=float, required=True)
    parser.add_argument("--slots", type=int, required=True, help="of a decoder; an encoder has one")
    given = parser.parse_args(arguments)
    encoders = {port: SimulatedRunner(given.encode_ms / 1000, 1) for port in given.encoders}
    decoders = {port: SimulatedRunner(given.write_ms / 1000, given.slots) for port in given.decoders}
    asyncio.run(serve(encoders | decoders))


def _ports(text: str) -> list[int]:
    return [int(port) for port in text.split(",")]


if __name__ == "__main__":
    main()
