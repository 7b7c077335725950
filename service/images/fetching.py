"""Fetches images from URLs in requests, from the public internet only.

A name is resolved once per connection, and the connection goes to an address that was checked.
Redirects are followed here and checked like the first URL. No cookies are sent, and an
Authorization only if the caller gives one. Errors name no resolved addresses; URLs are not logged.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from service.admission.fair_queue import FairShare
from service.admission.places import RequestContext
from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.images.inputs import AllowedHost, CheckedUrl, ImageUrl, check_url, ip_address
from service.settings import Settings

_MAX_REDIRECTS = 3
FETCH_TIMEOUT_S = 10.0  # one image; a request has 60 s by default, for its answer too
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
# Outside the public internet. Source: IANA's registries of special-purpose addresses, and of
# multicast. Copied, because `ipaddress.is_global` differs between Python 3.11 and 3.13 and includes
# multicast.
_SPECIAL_IPV4 = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24"
    " 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24"
    " 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
    " 168.63.129.16/32"  # Azure's platform services. Source: Microsoft Learn
)
_SPECIAL_IPV4_NETWORKS = list(map(ipaddress.IPv4Network, _SPECIAL_IPV4.split()))
# Everything outside it is special: mapped and translated IPv4, local, multicast. Source: IANA, IPv6
# Global Unicast.
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
# IETF's protocols with Teredo, documentation twice, 6to4, AS112
_SPECIAL_IPV6 = "2001::/23 2001:db8::/32 3fff::/20 2002::/16 2620:4f:8000::/48"
_SPECIAL_IPV6_NETWORKS = list(map(ipaddress.IPv6Network, _SPECIAL_IPV6.split()))


def is_public(address: str) -> bool:
    ip = ip_address(address)
    if ip is None:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4_NETWORKS)
    return ip in _UNICAST_IPV6 and not any(ip in network for network in _SPECIAL_IPV6_NETWORKS)


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
class ImageFetcher:
    """Fetches images from the allowed hosts; `is_allowed` decides on each address of a host.

    Names are looked up in separate threads, of which each client has its share. A look-up cannot be
    cancelled: it counts until its thread returns, which RES_OPTIONS (resolv.conf(5)) bounds.
    """

    allowed: Sequence[AllowedHost]
    max_bytes: int
    timeout_s: float = FETCH_TIMEOUT_S
    is_allowed: Callable[[str], bool] = is_public
    look_up: Callable[[str], Sequence[str]] = system_addresses
    threads: Executor = field(
        init=False, default_factory=lambda: ThreadPoolExecutor(_LOOKUP_THREADS, "lookup")
    )
    lookups: FairShare = field(init=False, default_factory=lambda: FairShare(_MAX_LOOKUPS))

    async def addresses(self, client: str, host: str) -> Sequence[str]:
        """Return a host's addresses; raise `OSError`, or `Overloaded` for many look-ups."""
        loop = asyncio.get_running_loop()
        self.lookups.take(client, 1, "host names being resolved")
        work = self.threads.submit(self.look_up, host)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self.lookups.remove, client, 1))
        return await asyncio.wrap_future(work)

    async def fetch(
        self,
        url: ImageUrl,
        context: RequestContext,
        hold: Callable[[int], None],
        authorization: str | None = None,
    ) -> bytes:
        """Return the body at a URL, counted by `hold`; every host receives the authorization."""
        resolver = CheckedResolver(partial(self.addresses, context.quota.name), self.is_allowed)
        headers = {} if authorization is None else {"Authorization": authorization}
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=resolver, use_dns_cache=False, force_close=True
            ),
            headers=_HEADERS | headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(),  # no timeout here: the whole fetch has one
        )
        timeout_s = min(self.timeout_s, context.deadline_s - time.monotonic())
        try:
            async with session, asyncio.timeout(timeout_s):
                return await self._follow(session, check_url(url.text, self.allowed), hold)
        except TimeoutError as error:
            problem = "the image could not be fetched from its URL"
            if time.monotonic() >= context.deadline_s:
                raise DeadlineExceeded(f"{problem} before the deadline") from error
            raise _failed(f"{problem} within {self.timeout_s:g} s") from error

    async def _follow(
        self, session: aiohttp.ClientSession, url: CheckedUrl, hold: Callable[[int], None]
    ) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                if ip_address(url.host) is not None and not self.is_allowed(url.host):
                    raise socket.gaierror(f"{url.host} is not allowed")
                async with session.get(url.text, allow_redirects=False) as response:
                    if response.status not in _REDIRECT_STATUSES:
                        return await self._read(response, hold)
                    location = response.headers.get("Location", "")
            except (aiohttp.ClientError, OSError) as error:
                # One text for all of these: a client must not learn which internal names exist.
                problem = "has no public address, no valid TLS certificate, or does not answer"
                host = f"the host of the image's URL, {url.host[:80]},"
                raise _failed(f"{host} {problem}") from error
            with suppress(ValueError):  # what cannot be joined is refused next
                location = urljoin(url.text, location)
            url = check_url(location, self.allowed)
        raise _failed(f"the image's URL redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse, hold: Callable[[int], None]) -> bytes:
        host = "the host of the image's URL"
        if response.status != 200:
            raise _failed(f"{host} answers with status {response.status}; it must be 200")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed(f"{host} sends it with a Content-Encoding; it must send it without")
        body = bytearray()
        self._check_size(response.content_length or 0)
        async for chunk in response.content.iter_any():
            hold(len(chunk))
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            limit = f"the maximum of {self.max_bytes} bytes"
            problem = f"the image at the URL is larger than {limit}"
            raise ServiceError(problem, "image", "payload_too_large")


def image_fetcher(settings: Settings) -> ImageFetcher | None:
    if not settings.url_hosts:
        return None
    hosts = list(map(AllowedHost.parse, settings.url_hosts))
    return ImageFetcher(hosts, settings.max_body_bytes)


def _failed(message: str) -> InvalidRequest:
    return InvalidRequest(message, "image")
