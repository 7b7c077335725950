"""Small HTTP servers in threads of this process."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import uvicorn
from starlette.types import ASGIApp


class Handler(BaseHTTPRequestHandler):
    """A handler that logs nothing, and sends whole responses."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


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
