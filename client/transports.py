"""The seam between client and network: what a transport does, and which one an address asks for.

http://HOST:PORT, https://HOST:PORT: REST; grpc://HOST:PORT, grpcs://HOST:PORT: gRPC without and with TLS.
"""

from collections.abc import AsyncGenerator, Generator
from typing import Protocol
from urllib.parse import urlsplit

from client.grpc_transports import AsyncGrpcTransport, GrpcTransport
from client.operations import Attempt, ResultT
from client.rest_transports import AsyncRestTransport, RestTransport
from client.results import Answer


class Transport(Protocol):
    """One try of a call over some interface."""

    def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        ...

    def stream(self, attempt: Attempt[Answer]) -> Generator[str | Answer, None, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    async def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        ...

    def stream(self, attempt: Attempt[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        ...

    async def close(self) -> None:
        """Close what is open."""
        ...


def transport_to(url: str, api_key: str | None) -> Transport:
    """Return the transport to an address; raise `ValueError` for one that is none."""
    scheme, address = _parts(url)
    if scheme in ("http", "https"):
        return RestTransport(url, api_key)
    return GrpcTransport(address, api_key, is_secure=scheme == "grpcs")


def async_transport_to(url: str, api_key: str | None) -> AsyncTransport:
    """Return the transport to an address for the running event loop; raise `ValueError` for one that is none."""
    scheme, address = _parts(url)
    if scheme in ("http", "https"):
        return AsyncRestTransport(url, api_key)
    return AsyncGrpcTransport(address, api_key, is_secure=scheme == "grpcs")


def _parts(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    is_rest, is_grpc = parts.scheme in ("http", "https"), parts.scheme in ("grpc", "grpcs")
    if not parts.netloc or not (is_rest or (is_grpc and parts.port and parts.path in ("", "/"))):
        allowed = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
        raise ValueError(f"the address of a service is {allowed}, not {url!r}")
    return parts.scheme, parts.netloc
