"""A runner that computes nothing: `python -m loadtest.simulated_runner PORT`.

It implements the runner's HTTP API (runners/transport/): a call without pixels gets 404, a call
with pixels always the same text.
"""

import asyncio
import json
import sys

from aiohttp import web

_MAX_BODY_BYTES = 16_000_000
_TEXT = "The image shows a small blue triangle on a dark background."
_NUM_TOKENS = 12


def app() -> web.Application:
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.add_routes([web.get("/readyz", ready), web.post("/write", write)])
    return app


async def serve(port: int) -> None:
    """Serve on a port of this host until the process ends."""
    runner = web.AppRunner(app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def ready(_request: web.Request) -> web.Response:
    return web.Response()


async def write(request: web.Request) -> web.Response:
    await request.read()
    if request.content_type == "application/json":
        return web.Response(status=404)
    return web.Response(body=_ANSWER, content_type="application/json")


_OUTCOME = {
    "kind": "written",
    "text": _TEXT,
    "token_ends": [len(_TEXT) * number // _NUM_TOKENS for number in range(1, _NUM_TOKENS + 1)],
    "logprobs": [-0.1] * _NUM_TOKENS,
    "finish_reason": "stop",
    "num_prompt_tokens": 8,
    "num_generated_tokens": _NUM_TOKENS,
    "queue_s": 0.0,
    "prefill_s": 0.0,
    "decode_s": 0.0,
}
_FEATURES = {"kind": "features", "outcome": "miss"}
_ANSWER = json.dumps({"features": _FEATURES, "outcomes": [_OUTCOME]}).encode()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
