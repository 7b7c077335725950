"""Gets a file by URL, from the public internet only.

A name is resolved once per connection, and the connection goes to an address that was checked.
Redirects are followed here and checked like the first URL. No cookies are sent, and an
Authorization only if the caller gives one. Errors name no resolved addresses; URLs are not logged.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from service.admission.fair_queue import FairShare
from service.errors import InvalidRequest
from service.outbound.bounds import BoundedConnector, body_pieces
from service.outbound.messages import CallError, FileCall
from service.outbound.urls import AllowedHost, CheckedUrl, check_url, ip_address, is_public

_MAX_REDIRECTS = 3
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
# identity: a compressed body could expand far beyond the limit on its size. */*: some hosts (Label
# Studio 1.23) answer 406 without it.
_HEADERS = {
    "Accept": "image/jpeg, image/png, image/webp, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "diptych",
}
_MAX_LOOKUPS = 16  # shared by the clients that have some
_LOOKUP_THREADS = 32  # all clients together may have twice the limit
_PIECE_BYTES = 65_536


def system_addresses(host: str) -> list[str]:
    """Return the addresses that the system's resolver finds; raise `OSError` without any."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, slots=True)
class CheckedResolver(AbstractResolver):
    """Gives aiohttp the addresses of a name if all of them are allowed.

    aiohttp calls it once per connection and connects to one of the returned addresses, so that
    checked and used address are the same.
    """

    look_up: Callable[[str], Awaitable[Sequence[str]]]
    is_allowed: Callable[[str], bool]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return all addresses; raise `gaierror` without any, or if one is not allowed."""
        addresses = await self.look_up(host)
        if not addresses or not all(map(self.is_allowed, addresses)):
            raise socket.gaierror(f"{host} has no allowed address")
        results: list[ResolveResult] = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            result = ResolveResult(
                hostname=host, host=address, port=port, family=family, proto=0, flags=flags
            )
            results.append(result)
        return results

    async def close(self) -> None:
        """Do nothing: it holds nothing."""


@dataclass(frozen=True, slots=True)
class FileCalls:
    """Gets files from allowed hosts; `is_public` decides on each address of a host.

    Names are looked up in separate threads, of which each client has its share. A look-up cannot be
    cancelled: it counts until its thread returns, which RES_OPTIONS (resolv.conf(5)) bounds.
    """

    is_public: Callable[[str], bool] = is_public
    look_up: Callable[[str], Sequence[str]] = system_addresses
    threads: Executor = field(
        init=False, default_factory=lambda: ThreadPoolExecutor(_LOOKUP_THREADS, "lookup")
    )
    lookups: FairShare = field(init=False, default_factory=lambda: FairShare(_MAX_LOOKUPS))

    async def addresses(self, client: str, host: str) -> Sequence[str]:
        """Return a host's addresses; raise `OSError`, or `CallError` for many look-ups."""
        loop = asyncio.get_running_loop()
        if self.lookups.excess(client, 1) > 0:
            raise CallError("overloaded", self.lookups.usage(client, "host names being resolved"))
        self.lookups.take(client, 1, "host names being resolved")
        work = self.threads.submit(self.look_up, host)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self.lookups.remove, client, 1))
        return await asyncio.wrap_future(work)

    async def get(self, call: FileCall) -> AsyncGenerator[bytes, None]:
        """Yield the body at a URL; raise `CallError`."""
        url = _checked(call.url, call.allowed)
        is_allowed = (lambda _: True) if call.may_be_private else self.is_public
        resolver = CheckedResolver(partial(self.addresses, call.client), is_allowed)
        session = aiohttp.ClientSession(
            connector=BoundedConnector(
                call.max_bytes, resolver=resolver, use_dns_cache=False, force_close=True
            ),
            headers=_HEADERS | call.headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(),  # the whole call has one
        )
        async with session:
            for _ in range(_MAX_REDIRECTS + 1):
                try:
                    if ip_address(url.host) is not None and not is_allowed(url.host):
                        raise socket.gaierror(f"{url.host} is not allowed")
                    async with session.get(url.text, allow_redirects=False) as response:
                        if response.status not in _REDIRECT_STATUSES:
                            async for piece in _read(response, call.max_bytes):
                                yield piece
                            return
                        location = response.headers.get("Location", "")
                except (aiohttp.ClientError, OSError) as error:
                    # One text for all: a client must not learn which internal names exist.
                    problem = "has no public address, no valid TLS certificate, or does not answer"
                    host = f"the host of the image's URL, {url.host[:80]},"
                    raise _failed(f"{host} {problem}") from error
                with suppress(ValueError):  # what cannot be joined is refused next
                    location = urljoin(url.text, location)
                url = _checked(location, call.allowed)
        raise _failed(f"the image's URL redirects more than {_MAX_REDIRECTS} times")


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncGenerator[bytes, None]:
    host = "the host of the image's URL"
    if response.status != 200:
        raise _failed(f"{host} answers with status {response.status}; it must be 200")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _failed(f"{host} sends it with a Content-Encoding; it must send it without")
    _check_size(response.content_length or 0, max_bytes)
    num_bytes = 0
    piece = bytearray()
    async for data in body_pieces(response, max_bytes):
        num_bytes += len(data)
        _check_size(num_bytes, max_bytes)
        piece += data
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        problem = f"the image at the URL is larger than the maximum of {max_bytes} bytes"
        raise CallError("payload_too_large", problem)


def _checked(url: str, allowed: Sequence[AllowedHost]) -> CheckedUrl:
    try:
        return check_url(url, allowed)
    except InvalidRequest as error:
        raise _failed(error.message) from error


def _failed(message: str) -> CallError:
    return CallError("invalid_request", message)
