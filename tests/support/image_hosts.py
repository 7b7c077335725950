"""HTTP hosts with scripted responses, and a resolver with scripted addresses."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress

RESPONSE_END = b"\r\nConnection: close\r\n\r\n"


def response(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + RESPONSE_END + body


def redirect(location: str) -> bytes:
    return response(b"", "302 Found", f"Location: {location}")


class ImageHost:
    """A host that answers by path and records the heads of its requests."""

    def __init__(self, answers: Mapping[str, bytes | Sequence[bytes]] | None = None) -> None:
        self.answers = dict(answers or {})
        self.port = 0
        self.num_connections = 0
        self.requests: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        # a client may disconnect at any time
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = self.answers.get(self.requests[-1].split()[1], response(b"", "404 Not Found"))
            for chunk in [answer] if isinstance(answer, bytes) else answer:
                writer.write(chunk)
                await writer.drain()
            if not isinstance(answer, bytes):
                await reader.read()  # the body never ends: the client must disconnect


@asynccontextmanager
async def listening(
    host: ImageHost, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[ImageHost]:
    server = await asyncio.start_server(host.serve, address, port)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()


class Names:
    """Looks up known names, whose addresses may change with every lookup; counts lookups."""

    def __init__(self, addresses: Mapping[str, Sequence[Sequence[str]] | Sequence[str]]) -> None:
        self._addresses = addresses
        self.num_lookups = 0

    def __call__(self, host: str) -> Sequence[str]:
        self.num_lookups += 1
        addresses = self._addresses.get(host)
        if addresses is None:
            raise OSError("no such name")
        if addresses and not isinstance(addresses[0], str):
            addresses = addresses[min(self.num_lookups, len(addresses)) - 1]
        return [str(address) for address in addresses]
