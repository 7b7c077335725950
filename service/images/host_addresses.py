"""Resolves host names, and decides which addresses the service may connect to. It knows no URLs."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from aiohttp.abc import AbstractResolver, ResolveResult

from service.admission.load import FairShare
from service.images.url_rules import ip_address

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
_SPECIAL_IPV4_NETWORKS = [ipaddress.IPv4Network(each) for each in _SPECIAL_IPV4.split()]
# Everything outside it is special: mapped and translated IPv4, local, multicast. Source: IANA, IPv6
# Global Unicast.
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = [
    ipaddress.IPv6Network(network)  # IETF's protocols with Teredo, documentation twice, 6to4, AS112
    for network in ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16", "2620:4f:8000::/48")
]


class NoAllowedAddress(OSError):
    """The host has no address, or one that is not allowed."""


def is_public(address: str) -> bool:
    """Return True for an IP address of the public internet."""
    ip = ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4_NETWORKS)
    return (
        ip is not None
        and ip in _UNICAST_IPV6
        and not any(ip in network for network in _SPECIAL_IPV6)
    )


def system_addresses(host: str) -> list[str]:
    """Return the addresses that the system's resolver finds; raise `OSError` without any."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


class Resolver(Protocol):
    """Resolves host names."""

    async def addresses(self, host: str, client: str) -> Sequence[str]:
        """Return a host's addresses; raise `OSError`, or `Overloaded` for many lookups."""


class SystemResolver:
    """Uses the system's resolver in separate threads, of which each client has its share.

    A look-up cannot be cancelled: it counts until its thread returns, which RES_OPTIONS
    (resolv.conf(5)) bounds.
    """

    def __init__(self, look_up: Callable[[str], Sequence[str]] = system_addresses) -> None:
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, "lookup")
        self._running = FairShare(_MAX_LOOKUPS)

    async def addresses(self, host: str, client: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        self._running.take(client, 1, "host names being resolved")
        work = self._threads.submit(self._look_up, host)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._running.remove, client, 1))
        return await asyncio.wrap_future(work)


class CheckedResolver(AbstractResolver):
    """Gives aiohttp the addresses of a name if all of them are allowed.

    aiohttp calls it once per connection and connects to one of the returned addresses, so that
    checked and used address are the same.
    """

    def __init__(self, resolver: Resolver, is_allowed: Callable[[str], bool], client: str) -> None:
        self._resolver = resolver
        self._client = client
        self._is_allowed = is_allowed

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  aiohttp passes it
    ) -> list[ResolveResult]:
        """Return all addresses; raise `NoAllowedAddress` without any, or if one is not allowed."""
        addresses = await self._resolver.addresses(host, self._client)
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise NoAllowedAddress(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the inner resolver is shared."""
