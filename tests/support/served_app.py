"""An ASGI app on a free port, in a thread of this process."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class ServedApp:
    url: str
    loop: asyncio.AbstractEventLoop


@contextmanager
def serving_app(
    app: ASGIApp, protocol: type[asyncio.Protocol] | None = None
) -> Iterator[ServedApp]:
    loop = asyncio.new_event_loop()
    # Only with the protocol named does asyncio switch off Nagle's algorithm, which would add 40 ms
    # to every answer.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(
            app, log_level="error", ws="none", timeout_graceful_shutdown=1, http=protocol or "auto"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listener]),))
        thread.start()
        try:
            yield ServedApp(f"http://127.0.0.1:{listener.getsockname()[1]}", loop)
        finally:
            server.should_exit = True
            thread.join()
            loop.close()
