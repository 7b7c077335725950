"""Addresses of clients, also of those behind trusted proxies.

A trusted proxy appends the address that called it to `X-Forwarded-For`: read from the right, the
first that is not a trusted proxy is the client's. What is further left may be invented.
"""

import ipaddress
from collections.abc import Sequence

_IPV6_PREFIX = 64  # a client has all addresses of its network

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return networks or addresses; raise `ValueError` naming an invalid one."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"{text!r} must be an IP address or a network: {error}") from error
    return tuple(networks)


def client_of(address: str) -> str:
    """Return an IPv4 address, the network of an IPv6 address, or other text as it is."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(parsed), _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def client_address(peer: str, forwarded: str | None, proxies: Sequence[Network]) -> str:
    """Return the address of the client; `forwarded`: the values of X-Forwarded-For."""
    address = peer
    hops = (forwarded or "").split(",") if proxies else []
    while hops and _is_in(address, proxies):
        hop = _without_port(hops.pop().strip())
        if _parsed(hop) is None:  # "unknown", or no address at all
            break
        address = hop
    return address


def _parsed(address: str) -> _Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address):
        return parsed.ipv4_mapped or parsed
    return parsed


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
